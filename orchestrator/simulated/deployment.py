"""A GPU and its engines in virtual time, behind the same seam as real ones. What it says is a prediction.

    with open_deployment(block, arms) as deployment:
        observation = deployment.measure(WindowOrder(...))

The same order on the same boot gives the same window; the virtual clock goes on from window to window. What is
modelled and what is not: docs/simulation.md.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from orchestrator.errors import BootError
from orchestrator.gpus import KINDS, GpuKind
from orchestrator.observation import Attachment, BootFacts, Observation, WindowOrder
from orchestrator.plan import Block
from orchestrator.simulated import readings
from orchestrator.simulated.constants import MODEL_VERSION, value
from orchestrator.simulated.engine import Engine
from orchestrator.simulated.kernels import StepCosts
from orchestrator.simulated.noise import Noise, generator
from orchestrator.simulated.options import SimulationOptions
from orchestrator.simulated.power import PowerCap
from orchestrator.simulated.requests import (
    Requests,
    Window,
    output_tokens_s,
    prompt_tokens,
    requests_frame,
    tokens_by_second,
)
from orchestrator.simulated.settings import EngineSettings, HostCosts, engine_settings
from orchestrator.simulated.sharing import Alone, SideBySide, TimeSlices
from orchestrator.simulated.simulation import Run, simulate
from orchestrator.trial import Arm, Mps, Workload, fingerprint
from workloads.architecture import bytes_per_parameter
from workloads.catalogue import load_model
from workloads.closed_loop import Load, first_lengths

FIRST_PID = 1_000_000


@dataclass(frozen=True, slots=True)
class Boot:
    """One arm that is up: what its engines are made of."""

    facts: BootFacts
    settings: EngineSettings
    costs: StepCosts
    host: HostCosts
    noise: Noise
    seed: str
    pids: tuple[int, ...]


@contextmanager
def open_deployment(block: Block, arms: Sequence[Arm], gpu: object | None = None) -> Iterator[SimulatedDeployment]:
    """Bring up the engines of `arms` in virtual time; `gpu` is ignored: there is none.

    Raises BootError where vLLM would refuse the engine arguments or a failure is planted, SpecError for unknown
    simulation options, ModelError for an unknown model or dtype.
    """
    yield SimulatedDeployment(block, arms)


class SimulatedDeployment:
    """Implements `observation.Deployment`."""

    def __init__(self, block: Block, arms: Sequence[Arm]) -> None:
        self.block = block
        self.options = SimulationOptions.from_engine_args(block.engine_args)
        if block.gpu_kind not in KINDS:
            raise BootError(f"no data sheet for GPU kind {block.gpu_kind!r}; known: {', '.join(KINDS)}")
        self.gpu: GpuKind = KINDS[block.gpu_kind]
        self.architecture = load_model(block.model)
        self._boots = {arm.name: self._boot(arm, index) for index, arm in enumerate(arms)}
        self._arms = {arm.name: arm for arm in arms}
        self._memory_bytes = sum(arm.engines * block.memory[arm.name].total for arm in arms)
        self._windows: dict[str, int] = {}
        self._cell: tuple[Workload, int] | None = None
        self._cell_origin_s = 0.0
        self.now_s = value("boot")  # virtual; engines start in parallel

    @property
    def boots(self) -> Mapping[str, BootFacts]:
        return {name: boot.facts for name, boot in self._boots.items()}

    def measure(self, order: WindowOrder) -> Observation:
        """Simulate one window; takes as long as that takes, or `wall_s_per_window` where more.

        Raises the planted failure, if there is one for this window.
        """
        began = time.monotonic()
        number = self._windows[order.arm.name] = self._windows.get(order.arm.name, -1) + 1
        failure = self.options.fail
        if failure is not None and (failure.arm, failure.at_window) == (order.arm.name, number) and self._due():
            failure.strike(f"at its window {number}")
        boot = self._boots[order.arm.name]
        gain = float(self.options.planted_gain.get(order.arm.name, 1.0))
        run = self._run(order, boot, gain)
        window = Window(
            from_s=run.until_s - order.window_s * gain,
            until_s=run.until_s,
            scale=1.0 / gain,
            origin_ns=round(self.now_s * 1e9),
            engines=order.arm.engines,
            prompt_tokens=order.workload.prompt_tokens,
        )
        observation = self._observe(order, boot, run, window)
        self.now_s += observation.warmup_s + order.window_s + value("handover")
        time.sleep(max(0.0, self.options.wall_s_per_window - (time.monotonic() - began)))
        return observation

    def keep_only(self, arm: str) -> None:
        """End the engines of all other arms; idle engines cost nothing in virtual time, so nothing else changes."""
        self._boots = {name: boot for name, boot in self._boots.items() if name == arm}
        self._arms = {name: each for name, each in self._arms.items() if name == arm}
        self._memory_bytes = sum(each.engines * self.block.memory[name].total for name, each in self._arms.items())

    def _run(self, order: WindowOrder, boot: Boot, gain: float) -> Run:
        """Load the arm's engines and run them; with a planted gain, one engine of the whole concurrency instead."""
        planted = self.options.planted
        arm, work = order.arm, order.workload
        rng = generator("window", boot.seed, order.seed, work, order.concurrency, order.pilot)
        speed = boot.noise.window_speed(self._drift_s(order), rng)
        count = 1 if planted else arm.engines
        host = boot.host if planted else boot.host.scaled(0.0 if work.replayed else 1 / speed)
        engines = [
            Engine(boot.settings, boot.costs, host, work, 1 / speed, boot.noise.step_jitter(rng)) for _ in range(count)
        ]
        if planted:
            engines[0].even_step_s = engines[0].mean_step_s(order.concurrency)
        for index, engine in enumerate(engines):
            clients = range(index, order.concurrency, count)
            load = Load(
                len(clients),
                work.prompt_tokens,
                work.output_tokens,
                int(fingerprint([boot.seed, order.seed, index])[:8], 16),
                boot.settings.max_num_batched_tokens,
                residual=work.phase != "decode",
            )
            # Where a planted truth is to come back without noise, chance in the load would hide it.
            even = (np.arange(load.clients) + 0.5) / load.clients * load.output_tokens
            lengths = first_lengths(load, even if planted and not self.options.realistic else None)
            for place, (client, length) in enumerate(zip(clients, lengths.tolist(), strict=True)):
                engine.send(client, 0, length, 0.0, (place + 1) * boot.host.frontend_request_s * gain)
        sharing = Alone() if count == 1 else TimeSlices() if arm.sharing == "timesliced" else SideBySide()
        until_s = (order.warmup_s + order.window_s) * gain
        after_ramp_s = (order.settle_s + order.window_s) * gain
        return simulate(engines, sharing, PowerCap(self.gpu, enabled=not planted), until_s, after_ramp_s)

    def _observe(self, order: WindowOrder, boot: Boot, run: Run, window: Window) -> Observation:
        requests = Requests.of(run, window)
        logs = [readings.StepLog.of(engine) for engine in run.engines]
        return Observation(
            start_ns=window.origin_ns + round(window.from_s * window.scale * 1e9),
            duration_s=order.window_s,
            warmup_s=window.from_s * window.scale,
            output_tokens=int(tokens_by_second(requests, window).sum()),
            output_tokens_s=sum(output_tokens_s(engine, window) for engine in run.engines),
            # In decode the KV of a request is there from its beginning: its prompt is nobody's work.
            prompt_tokens=0 if order.workload.phase == "decode" else prompt_tokens(requests, window),
            requests=requests_frame(requests, window),
            samples=readings.samples_frame(run, logs, requests, window, self.gpu),
            engines=readings.engine_facts(logs, requests, window, order.concurrency, boot.facts.kv_bytes_per_engine),
            gpu=readings.gpu_facts(run, logs, window, self.gpu, self._memory_bytes),
            attachment=self._attachment(order.arm),
            idle_arm_steps=0,
            driver_cpu=0.0,
            steal_share=0.0,
            notes={"simulated": True, "planted_gain": self.options.planted},
        )

    def _attachment(self, arm: Arm) -> Attachment:
        own = self._boots[arm.name].pids
        if arm.sharing != "mps":
            return Attachment((), (), own, own, "simulated")
        others = tuple(
            pid for name, boot in self._boots.items() if self._arms[name].sharing != "mps" for pid in boot.pids
        )
        return Attachment(own, own, others, others, "simulated")

    def _due(self) -> bool:
        failure = self.options.fail
        return failure is not None and (
            failure.repeat is None or any(repeat.number == failure.repeat for repeat in self.block.repeats)
        )

    def _drift_s(self, order: WindowOrder) -> float:
        """Where on the drift a window lies: from a place of each cell's own, since cells of the block that were
        measured in an earlier run must not shift it."""
        cell = (order.workload, order.concurrency)
        if cell != self._cell:
            place = generator("place", _deployment_seed(self.block), *cell).uniform(0.0, value("drift_period"))
            self._cell, self._cell_origin_s = cell, self.now_s - place
        return self.now_s - self._cell_origin_s

    def _boot(self, arm: Arm, index: int) -> Boot:
        block, options = self.block, self.options
        failure = options.fail
        if failure is not None and failure.error == "BootError" and failure.arm == arm.name and self._due():
            failure.strike("at its boot")
        planted = options.planted
        deployment_seed = _deployment_seed(block)
        seed = fingerprint([deployment_seed, arm.name])
        gpu_uuid = f"SIM-{fingerprint([block.gpu_kind, deployment_seed])}"
        sizing = block.sizing[arm.name]
        args = {**block.engine_args, **({} if planted else arm.engine_args)}
        capped = isinstance(arm.mode, Mps) and not planted
        share = arm.mode.active_thread_percentage / 100 if capped and isinstance(arm.mode, Mps) else 1.0
        host = HostCosts.from_constants()
        pids = tuple(FIRST_PID + 100 * index + engine for engine in range(arm.engines))
        return Boot(
            facts=BootFacts(
                boot_id=f"sim-{seed}",
                boot_s=value("boot"),
                gpu_name=f"Simulated {block.gpu_kind}",
                gpu_uuid=gpu_uuid,
                host="simulated",
                kv_bytes_per_engine=sizing.kv_bytes,
                max_model_len_tokens=sizing.max_model_len_tokens,
                max_num_seqs=sizing.max_num_seqs,
                weights="none",
                placement={"cores_per_engine": arm.cores_per_engine, "pinned": arm.pinned, "pids": list(pids)},
                software={"simulator": MODEL_VERSION},
            ),
            settings=engine_settings(arm, args, sizing, self.architecture, 1 if not planted else arm.engines),
            costs=_step_costs(
                block.model,
                self.gpu,
                max(1, int(self.gpu.sms * share)),
                bytes_per_parameter(str(args.get("dtype", "bfloat16")), args.get("quantization")),
            ),
            host=host if arm.pinned or planted else host.scaled(value("unpinned_host")),
            noise=Noise.of_boot(seed, deployment_seed, options.realistic, options.slow_boot_probability),
            seed=seed,
            pids=pids,
        )


@lru_cache(maxsize=8)
def _step_costs(model: str, gpu: GpuKind, sms: int, bytes_per_parameter: float) -> StepCosts:
    """Shared by all boots of this process that they are the same for: what one has worked out the others look up."""
    return StepCosts(load_model(model), gpu, sms, bytes_per_parameter)


def _deployment_seed(block: Block) -> str:
    """Names the boots of a block, and not what is left to measure in it: a sweep that was interrupted comes out as one
    that was not."""
    first = block.repeats[0]
    decode = first.cell.workload.phase == "decode"
    return fingerprint(
        [block.gpu_kind, block.model, block.engine_args, block.residency, decode, first.number, first.seed]
    )
