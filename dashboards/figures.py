"""The figures by name, all pure functions from frames to `go.Figure`; report and app draw these and no others."""

from __future__ import annotations

from dashboards.agreement import agreement_figure
from dashboards.busy_bars import busy_bars
from dashboards.explanation import activity, bound_by
from dashboards.gain_curves import gain_over_context
from dashboards.half_figures import halves_gain, step_bars
from dashboards.health import certificates, outcomes
from dashboards.host_overhead import graph_modes, host_counters, rate_over_core_speed
from dashboards.latency_curves import latency_ratios, throughput_over_latency
from dashboards.latency_distribution import latency_distribution
from dashboards.progress_curve import progress_curve
from dashboards.ratio_forest import ratio_forest
from dashboards.telemetry import telemetry
from dashboards.verdict_map import verdict_map
from dashboards.window_trace import window_trace

__all__ = [
    "activity",
    "agreement_figure",
    "bound_by",
    "busy_bars",
    "certificates",
    "gain_over_context",
    "graph_modes",
    "halves_gain",
    "host_counters",
    "latency_distribution",
    "latency_ratios",
    "outcomes",
    "progress_curve",
    "rate_over_core_speed",
    "ratio_forest",
    "step_bars",
    "telemetry",
    "throughput_over_latency",
    "verdict_map",
    "window_trace",
]
