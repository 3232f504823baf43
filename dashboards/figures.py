"""The figures by name, all pure functions from frames to `go.Figure`; report and app draw these and no others."""

from __future__ import annotations

from dashboards.explanation import activity, bound_by
from dashboards.gain_curves import gain_over_context
from dashboards.health import certificates, outcomes
from dashboards.latency_curves import latency_ratios, throughput_over_latency
from dashboards.verdict_map import verdict_map
from dashboards.window_trace import window_trace

__all__ = [
    "activity",
    "bound_by",
    "certificates",
    "gain_over_context",
    "latency_ratios",
    "outcomes",
    "throughput_over_latency",
    "verdict_map",
    "window_trace",
]
