"""What a deployment is asked for and what it answers: the seam between the runner and the two kinds of GPU.

`deployment.py` (real engines) and `simulated/deployment.py` (virtual time) both offer

    with open_deployment(block, arms, gpu) as deployment:      # the engines of `arms`, resident side by side
        observation = deployment.measure(WindowOrder(...))     # load on one arm only; blocks until its window is over

so that everything after this seam, certificates and statistics included, is the same code for both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import polars as pl

from orchestrator.trial import Arm, Workload


@dataclass(frozen=True, slots=True)
class WindowOrder:
    """Load `arm` with `concurrency` clients in all, warm up, then measure for `window_s` without draining.

    `seed` fixes prompts and residual lengths. `pilot` windows size the real ones and are not stored.
    settle_s: the warm-up lasts at least so long after every client had its first token.
    latency_s: of a request, where it is known: so many prompts are made beforehand.
    profile_steps: in a replayed window, how many more times to run the step under a profiler, after its end.
    """

    arm: Arm
    workload: Workload
    concurrency: int
    warmup_s: float
    window_s: float
    seed: int
    pilot: bool = False
    latency_s: float | None = None
    settle_s: float = 0.0
    profile_steps: int = 0


@dataclass(frozen=True, slots=True)
class ReplayedStep:
    """The step that an engine ran over and over. launched: as a CUDA `graph`, or by a `call` where there is no GPU.

    asked: tokens that it had to have at least.
    """

    tokens: int
    sequences: int
    launched: str
    asked: int


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """One engine's part of a window, as its scheduler and its process saw it. None: this backend cannot say.

    clients: how many closed-loop clients were planned for it; in_flight_mean: time average of requests in flight.
    steps_tokens: of all steps, prompts' included; steps_padded_tokens: with what filled them up to graph sizes.
    """

    engine: int
    clients: int
    in_flight_mean: float
    requests_completed: int
    requests_failed: int
    steps: int | None = None
    steps_full_graph: int | None = None
    steps_piecewise_graph: int | None = None
    steps_tokens: int | None = None
    steps_padded_tokens: int | None = None
    running_mean: float | None = None
    waiting_mean: float | None = None
    kv_usage_max: float | None = None
    preemptions: int | None = None
    prefix_cache_hits: int | None = None
    engine_core_cpu: float | None = None
    engine_core_speed_mops: float | None = None
    frontend_cpu: float | None = None
    loop_lag_p99_s: float | None = None
    kv_bytes: int | None = None
    core_set_ok: bool | None = None
    replayed: ReplayedStep | None = None


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """The GPU over a window. Shares are fractions of the window; None: the counter cannot be read here."""

    gpu_active_share: float | None = None
    sm_active_share: float | None = None
    sm_occupancy_share: float | None = None
    tensor_active_share: float | None = None
    dram_active_share: float | None = None
    sm_clock_mhz: float | None = None
    power_w: float | None = None
    energy_j: float | None = None
    power_capped_share: float | None = None
    thermal_capped_share: float | None = None
    memory_used_bytes: int | None = None
    foreign_pids: tuple[int, ...] | None = ()  # None: the process list does not show even our own


@dataclass(frozen=True, slots=True)
class Attachment:
    """Who was in the MPS daemon's client list at the window's edges.

    expected: EngineCore pids of the arm's engines (empty outside MPS); attached: pids that the daemon named and that
    are known to be ours; method: how it was proved (see mps_attachment), `simulated`, or `none`.
    """

    expected: tuple[int, ...] = ()
    attached: tuple[int, ...] = ()
    detached: tuple[int, ...] = ()  # engines of non-MPS arms that were proved to be no clients
    should_be_detached: tuple[int, ...] = ()
    method: str = "none"


@dataclass(frozen=True, slots=True)
class Observation:
    """One window. `requests` and `samples` have the columns of records without the id columns.

    start_ns, duration_s: the window itself, warm-up excluded. output_tokens_s: tapered (orchestrator/taper.py).
    idle_arm_steps: engine steps that arms without load made during the window. Raises nothing: what could not be read
    is None and the certificate says so.
    """

    start_ns: int
    duration_s: float
    warmup_s: float
    output_tokens: int
    prompt_tokens: int
    requests: pl.DataFrame
    samples: pl.DataFrame
    engines: tuple[EngineFacts, ...]
    gpu: GpuFacts
    attachment: Attachment
    idle_arm_steps: int | None = None
    driver_cpu: float | None = None
    steal_share: float | None = None
    output_tokens_s: float | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BootFacts:
    """What an arm's engines are: stored with the arm's trials.

    software: versions, which must be the same wherever rows are compared; engine: what the engine's arguments came to,
    and how long its boot took by phase.
    """

    boot_id: str
    boot_s: float
    gpu_name: str
    gpu_uuid: str
    host: str
    kv_bytes_per_engine: int
    max_model_len_tokens: int
    max_num_seqs: int
    weights: str
    placement: Mapping[str, Any]
    software: Mapping[str, Any]
    engine: Mapping[str, Any] = field(default_factory=dict)


class Deployment(Protocol):
    """The engines of one or more arms, up and idle on one GPU."""

    @property
    def boots(self) -> Mapping[str, BootFacts]:
        """By arm name."""
        ...

    def measure(self, order: WindowOrder) -> Observation:
        """Run one window.

        Raises EngineCrashed or MpsFault when the deployment is lost, WindowError when only the window is.
        """
        ...

    def keep_only(self, arm: str) -> None:
        """End the engines of all other arms; `arm` goes on in the boot that it has."""
        ...
