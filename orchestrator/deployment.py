"""The engines of one or more arms, up and idle on one GPU, and what keeps them honest.

    with open_deployment(block, arms, worker) as deployment:
        observation = deployment.measure(order)

One visible stack of contexts: a clean GPU, the guardian, the MPS daemon if an arm wants it, the sampler, the engines,
all booting in parallel. What comes up last goes down first; whatever kills this process, the guardian ends the rest.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from orchestrator import cores
from orchestrator.cores import Placement, Topology, gpu_numa_node, read_topology, share_of_gpu
from orchestrator.engine import Engine, Launch, boot_phases, engine_process
from orchestrator.engine_settings import (
    cores_of,
    engine_args,
    environment,
    model_folder,
    place,
    tokenizer_of,
    weights_of,
)
from orchestrator.gpu_devices import Gpu, list_gpus
from orchestrator.gpu_lease import clean_gpu, leased_gpu
from orchestrator.gpu_telemetry import GpuSampler
from orchestrator.guardian import OWN_PREFIX, Guardian, guardian
from orchestrator.live_window import Bench, take_window
from orchestrator.mps import MpsDaemon, Watchdog, daemon
from orchestrator.mps_attachment import outside_environment
from orchestrator.nursery import Nursery
from orchestrator.observation import BootFacts, Observation, WindowOrder
from orchestrator.plan import Block
from orchestrator.process import tail
from orchestrator.provenance import software
from orchestrator.trial import Arm
from workloads.catalogue import load_model

# A cold compile cache took 85 s on an H200 host; a slower disk or CPU takes several times that.
BOOT_LIMIT_S = 600.0


class EngineDeployment:
    """Implements `observation.Deployment` over real engines."""

    def __init__(
        self,
        bench: Bench,
        boots: Mapping[str, BootFacts],
        watchdog: Watchdog | None,
        going: Mapping[str, ExitStack],
    ) -> None:
        self.boots = boots
        self._bench = bench
        self._watchdog = watchdog
        self._going = going

    def measure(self, order: WindowOrder) -> Observation:
        """Run one window; see `observation.Deployment`."""
        if self._watchdog:
            self._watchdog.raise_if_lost()
        return take_window(self._bench, order)

    def keep_only(self, arm: str) -> None:
        """End the engines of all other arms. Raises MeasurementError where one survives SIGKILL."""
        leaving = [name for name in self._bench.engines if name != arm]
        for engine in (engine for name in leaving for engine in self._bench.engines[name]):
            engine.dismiss()  # all before the first is waited for: they go down in the time of one
        for name in leaving:
            self._going[name].close()
        self._bench = self._bench.without(leaving)


@contextmanager
def open_deployment(
    block: Block, arms: Sequence[Arm], worker: Mapping[str, Any], births: Nursery
) -> Iterator[EngineDeployment]:
    """Bring up the engines of `arms` for `block`, resident side by side, from the host's nursery.

    Raises BootError, MpsError or GpuNotClean on the way up, and GpuNotClean when something is left on the way down.
    """
    gpu = leased_gpu() if block.backend == "vllm" else None
    topology = read_topology()
    if gpu:  # the other GPUs of the host have engines too, now or later
        topology = share_of_gpu(topology, gpu.bus_id, [each.bus_id for each in list_gpus()])
    with ExitStack() as stack:
        folder = Path(stack.enter_context(_log_folder(block)))
        if gpu:
            stack.enter_context(clean_gpu(gpu))
        guard = stack.enter_context(guardian())
        # vLLM's sockets, which it would leave behind; their paths must be short, so not beside the logs.
        sockets = stack.enter_context(tempfile.TemporaryDirectory(prefix=OWN_PREFIX, dir="/tmp"))
        guard.add_folder(sockets)
        mps, watchdog = _mps(stack, arms, gpu, guard)
        sampler = stack.enter_context(GpuSampler(gpu.uuid)) if gpu else None
        began = time.monotonic()
        going = {arm.name: stack.enter_context(ExitStack()) for arm in arms}
        engines = _boot(stack, going, block, arms, gpu, mps, topology, guard, births, folder, sockets)
        boot_s = time.monotonic() - began
        placed = {arm.name: _place(arm, arms, topology, gpu) for arm in arms}
        stack.enter_context(_own_place([placed[arm.name] for arm in arms]))
        bench = Bench(engines, {arm.name: arm for arm in arms}, load_model(block.model), gpu, sampler, mps, placed)
        boots = {arm.name: _facts(block, arm, engines[arm.name], placed[arm.name], gpu, boot_s, worker) for arm in arms}
        yield EngineDeployment(bench, boots, watchdog, going)


def _mps(
    stack: ExitStack, arms: Sequence[Arm], gpu: Gpu | None, guard: Guardian
) -> tuple[MpsDaemon | None, Watchdog | None]:
    if gpu is None or not any(arm.sharing == "mps" for arm in arms):
        return None, None
    mps = stack.enter_context(daemon(gpu.uuid, guard=guard))
    mps.start_server()
    return mps, stack.enter_context(mps.watch())


def _boot(
    stack: ExitStack,
    going: Mapping[str, ExitStack],
    block: Block,
    arms: Sequence[Arm],
    gpu: Gpu | None,
    mps: MpsDaemon | None,
    topology: Topology,
    guard: Guardian,
    births: Nursery,
    folder: Path,
    sockets: str,
) -> dict[str, list[Engine]]:
    """Start every engine, then wait for all: they boot in the time of one. going: by arm, what ends its engines."""
    folder_of_model = model_folder(block)
    tokenizer = tokenizer_of(block, load_model(block.model).vocabulary)
    engines: dict[str, list[Engine]] = {}
    for arm in arms:
        placed = _place(arm, arms, topology, gpu)
        for index in range(arm.engines):
            token = secrets.token_hex(8)
            launch = Launch(
                name=f"{arm.name}-{index}",
                arm=arm.name,
                index=index,
                token=token,
                engine_args=engine_args(block, arm, folder_of_model, gpu, tokenizer),
                weights=weights_of(block, arm),
                environment={
                    **environment(arm, gpu.name if gpu else "cpu", _connection(arm, gpu, mps, token)),
                    "VLLM_RPC_BASE_PATH": sockets,
                },
                cores=cores_of(placed, index),
                folder=folder,
            )
            engine = going[arm.name].enter_context(engine_process(launch, guard, births))
            engines.setdefault(arm.name, []).append(engine)
    for engine in (engine for group in engines.values() for engine in group):
        stack.callback(engine.dismiss)  # all before the first is waited for: they go down in the time of one
    deadline = time.monotonic() + BOOT_LIMIT_S
    for engine in (engine for group in engines.values() for engine in group):
        engine.wait_ready(max(1.0, deadline - time.monotonic()))
    return engines


def _connection(arm: Arm, gpu: Gpu | None, mps: MpsDaemon | None, token: str) -> dict[str, str]:
    if gpu is None:
        return {}
    if arm.sharing == "mps" and mps is not None:
        return mps.client_environment(token, getattr(arm.mode, "active_thread_percentage", 100))
    return outside_environment(gpu.uuid, token)


def _place(arm: Arm, arms: Sequence[Arm], topology: Topology, gpu: Gpu | None) -> Placement:
    return place(arm, arms, topology, gpu_numa_node(gpu.bus_id) if gpu else None)


@contextmanager
def _own_place(placed: Sequence[Placement]) -> Iterator[None]:
    """Keep this process off the engines' cores while they are measured."""
    rest = set.intersection(*(set(one.rest) for one in placed)) if placed else set()
    before = os.sched_getaffinity(0)
    if rest and all(one.pinned for one in placed):
        cores.apply(os.getpid(), rest)
    try:
        yield
    finally:
        cores.apply(os.getpid(), before)


@contextmanager
def _log_folder(block: Block) -> Iterator[str]:
    """Where engines log; kept after a failure, because the message points there."""
    folder = tempfile.mkdtemp(prefix=f"mpscape-{block.block_id[:8]}-")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _facts(
    block: Block,
    arm: Arm,
    engines: Sequence[Engine],
    placed: Placement,
    gpu: Gpu | None,
    boot_s: float,
    worker: Mapping[str, Any],
) -> BootFacts:
    first = engines[0].facts
    return BootFacts(
        boot_id=secrets.token_hex(8),
        boot_s=boot_s,
        gpu_name=gpu.name if gpu else "CPU",
        gpu_uuid=gpu.uuid if gpu else f"CPU-{socket.gethostname()}",
        host=socket.gethostname(),
        kv_bytes_per_engine=block.sizing[arm.name].kv_bytes,
        max_model_len_tokens=first["max_model_len_tokens"],
        max_num_seqs=first["max_num_seqs"],
        weights=weights_of(block, arm),
        placement={**placed.plain(), "worker": dict(worker), "engine_nice": cores.niceness(engines[0].pids[-1])},
        software={**software(), "vllm": first["vllm"], "torch": first["torch"]},
        engine={
            **{key: first[key] for key in ENGINE_FACTS},
            "boot_s": [engine.facts["boot_s"] for engine in engines],
            "boot_phases": [boot_phases(tail(engine.launch.log, 2000, 2**20)) for engine in engines],
        },
    )


ENGINE_FACTS = (
    "model_runner",
    "step_hook",
    "weights_filled",
    "async_scheduling",
    "cudagraph_mode",
    "max_capture_tokens",
    "max_num_batched_tokens",
    "prefix_caching",
)
