"""The parent's side of one engine process: start it, pin it, give it orders, notice when it dies.

with engine_process(launch, guard) as engine:        # started, not yet up
    facts = engine.wait_ready(limit_s)
    engine.order({"op": ...}); engine.expect("loaded", limit_s)
"""

from __future__ import annotations

import io
import json
import os
import re
import select
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from orchestrator import cores
from orchestrator.engine_probe import StepCounters
from orchestrator.errors import BootError, EngineCrashed, MeasurementError
from orchestrator.guardian import Guardian
from orchestrator.nursery import Newborn, Nursery
from orchestrator.process import ProcessIdentity, descendants, end

STOP_GRACE_S = 20.0
BOOT_PHASES = {
    "weights_s": re.compile(r"Model loading took .* and ([0-9.]+) seconds"),
    "compile_s": re.compile(r"torch\.compile took ([0-9.]+) s"),
    "capture_s": re.compile(r"Graph capturing finished in ([0-9.]+) secs"),
    "init_engine_s": re.compile(r"init engine .* took ([0-9.]+) s"),
}
# vLLM reads these at import: one thread each, or engines that start together fight over the cores of the others.
THREAD_LIMITS = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True, slots=True)
class Launch:
    """Everything one engine process is started with. environment: complete; cores: None leaves it unpinned."""

    name: str
    arm: str
    index: int
    token: str  # in its environment: tells it from others in the MPS daemon's client list
    engine_args: Mapping[str, Any]
    weights: str
    environment: Mapping[str, str]
    cores: cores.EngineCores | None
    folder: Path

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"


@dataclass(slots=True)
class Engine:
    """A running engine process. `facts` is what it said of itself when it came up; `family` the children it was seen
    with, which nothing else leads to once their parent was killed."""

    launch: Launch
    child: Newborn
    counters: StepCounters
    orders_fd: int
    answers_fd: int
    facts: dict[str, Any] = field(default_factory=dict)
    core: ProcessIdentity | None = None
    family: set[ProcessIdentity] = field(default_factory=set)
    _buffer: bytearray = field(default_factory=bytearray)

    def wait_ready(self, limit_s: float) -> None:
        """Wait until it can serve, then pin it. Raises BootError with the reason and the log's tail."""
        try:
            answer, _ = self._read("ready", limit_s)
        except EngineCrashed as error:
            raise BootError(f"{self.launch.name} did not come up: {error}", error.log_tail) from error
        if answer["event"] == "failed":
            tail = self.child.log_tail(60)
            raise BootError(f"{self.launch.name}: {boot_reason(answer['reason'], tail)}; log: {self.launch.log}", tail)
        self.facts = answer
        self.core = ProcessIdentity.of(answer["engine_core_pid"])
        self.family |= descendants([self.child.identity])
        if self.launch.cores is not None:
            cores.apply(self.child.identity.pid, self.launch.cores.frontend)
            cores.apply(self.core.pid, self.launch.cores.core)

    def order(self, message: Mapping[str, Any]) -> None:
        """Send an order. Raises EngineCrashed if nobody reads it."""
        try:
            os.write(self.orders_fd, json.dumps(message).encode() + b"\n")
        except BrokenPipeError as error:
            raise self._crashed("it closed its orders") from error

    def dismiss(self) -> None:
        """End its orders: an orderly shutdown begins, which nobody waits for here."""
        if self.orders_fd >= 0:
            os.close(self.orders_fd)
            self.orders_fd = -1

    def expect(self, event: str, limit_s: float) -> tuple[dict[str, Any], bytes]:
        """The next answer, which must be `event`. Raises EngineCrashed on death, another answer or silence."""
        answer, payload = self._read(event, limit_s)
        if answer["event"] != event:
            raise self._crashed(f"it answered {answer} instead of {event!r}")
        return answer, payload

    def has_answered(self) -> bool:
        """Whether an answer, or a part of one, waits to be read."""
        return bool(self._buffer) or bool(select.select([self.answers_fd], [], [], 0)[0])

    def requests(self, payload: bytes) -> pl.DataFrame:
        """The request rows that came with a window."""
        return pl.read_ipc(io.BytesIO(payload)).with_columns(engine=pl.lit(self.launch.index, pl.Int64))

    def cores_as_planned(self) -> bool | None:
        """Whether both processes run where they were put; None where they were not pinned."""
        if self.launch.cores is None or self.core is None:
            return None
        return set(cores.read_back(self.child.identity.pid)) == set(self.launch.cores.frontend) and set(
            cores.read_back(self.core.pid)
        ) == set(self.launch.cores.core)

    @property
    def core_pid(self) -> int:
        """EngineCore's pid, once it is up: the process that computes on the GPU."""
        if self.core is None:
            raise self._crashed("it is not up yet")
        return self.core.pid

    @property
    def pids(self) -> tuple[int, ...]:
        return (self.child.identity.pid, *((self.core.pid,) if self.core else ()))

    def raise_if_dead(self) -> None:
        """Raises EngineCrashed if either process is gone."""
        if not self.child.alive:
            raise self._crashed("its process is gone")
        if self.core is not None and not self.core.alive:
            raise self._crashed("its EngineCore is gone")

    def _read(self, event: str, limit_s: float) -> tuple[dict[str, Any], bytes]:
        deadline = time.monotonic() + limit_s
        line = self._until(deadline, event, lambda: self._buffer.find(b"\n") + 1)
        answer = json.loads(line)
        size = answer.pop("payload_bytes")
        payload = self._until(deadline, event, lambda: size if len(self._buffer) >= size else 0) if size else b""
        return answer, bytes(payload)

    def _until(self, deadline: float, event: str, ready: Any) -> bytes:
        while not (length := ready()):
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._crashed(f"no {event!r} in time")
            if select.select([self.answers_fd], [], [], min(left, 0.5))[0]:
                part = os.read(self.answers_fd, 2**20)
                if not part:
                    self.child.wait(STOP_GRACE_S)  # its last words reach the log before it ends
                    raise self._crashed("its process ended")
                self._buffer += part
            else:
                if self.core is None:  # booting: the family still grows
                    self.family |= descendants([self.child.identity])
                self.raise_if_dead()
        taken = bytes(self._buffer[:length])
        del self._buffer[:length]
        return taken

    def _crashed(self, why: str) -> EngineCrashed:
        tail = self.child.log_tail(60)
        return EngineCrashed(f"engine {self.launch.name} is lost: {why}; log: {self.launch.log}", tail)


@contextmanager
def engine_process(launch: Launch, guard: Guardian, births: Nursery) -> Iterator[Engine]:
    """Start the process and send its boot order; on exit it and everything below it is gone."""
    counters = StepCounters(launch.folder / f"{launch.name}.steps")
    orders_read, orders_write = os.pipe()
    answers_read, answers_write = os.pipe()
    environment = {**launch.environment, **THREAD_LIMITS, **guard.environment()}
    engine: Engine | None = None
    try:
        try:
            child = births.engine(environment, launch.log, orders_read, answers_write)
        finally:
            os.close(orders_read)
            os.close(answers_write)
        guard.add(child.identity)
        engine = Engine(launch, child, counters, orders_write, answers_read)
        engine.order(
            {
                "op": "boot",
                "engine_args": dict(launch.engine_args),
                "counters_path": str(counters.path),
                "weights": launch.weights,
            }
        )
        try:
            yield engine
        finally:
            engine.dismiss()  # before any signal
            child.wait(STOP_GRACE_S)
            child.stop(STOP_GRACE_S)
            if survivors := end(engine.family, STOP_GRACE_S):
                pids = sorted(member.pid for member in survivors)
                raise MeasurementError(f"processes {pids} of {launch.name} survive SIGKILL; log: {launch.log}")
            guard.remove(child.identity)
    finally:
        if engine is None:
            os.close(orders_write)
        else:
            engine.dismiss()
        os.close(answers_read)


# An exception of whatever module as a traceback ends with it, and what CUDA and vLLM say without one.
CAUSE = re.compile(r"(?:^|\] |\s)(?:\w+\.)*[A-Z]\w*(?:Error|Exception)(?::|$)|CUDA error|No available")
# Pydantic puts the reason on the lines after; the exception that vLLM raised has them all.
CONSEQUENCES = ("EngineCore failed", "See root cause", "raise ", "validation error for")


def boot_phases(log: str) -> dict[str, float]:
    """Seconds of a boot by phase, as vLLM's log tells them; a phase that it does not tell is absent."""
    return {name: float(found[-1]) for name, pattern in BOOT_PHASES.items() if (found := pattern.findall(log))}


def boot_reason(reason: str, log_tail: str) -> str:
    """The line of the log that explains a failed boot: vLLM's own exception only says that EngineCore failed."""
    for line in reversed(log_tail.splitlines()):
        if CAUSE.search(line) and not any(words in line for words in CONSEQUENCES):
            return line.split("] ", 1)[-1].strip()
    return reason
