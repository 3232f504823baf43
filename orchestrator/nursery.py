"""Engine processes born with vLLM already imported: a process that imports once and forks for each engine.

Importing vLLM takes 9 s for one process and 17 s for six at a time (H200 host, vLLM 0.25.1), all of it while the GPU
stands idle. The nursery pays that once for a host, beside other work, before CUDA is touched by anybody: CUDA does not
survive a fork, so it must never be initialised here, and each child takes its own environment before it is.

    with nursery(environment, log) as births:
        child = births.engine(environment, log, orders_fd, answers_fd)

The nursery ends with its socket, whatever ended its owner; its children end with their orders.
"""

from __future__ import annotations

import json
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import BootError, MeasurementError
from orchestrator.process import ProcessIdentity, Supervised, descendants, supervised, tail, wait_gone

# A cold page cache on a slow disk makes the import several times slower than the 9 s seen.
IMPORT_LIMIT_S = 300.0
BIRTH_LIMIT_S = 30.0
_KILL_WAIT_S = 10.0


@dataclass(frozen=True, slots=True)
class Newborn:
    """A child of the nursery: an engine process. Its exit status is not told; its log says why it ended."""

    identity: ProcessIdentity
    log: Path

    @property
    def alive(self) -> bool:
        return self.identity.alive

    def log_tail(self, lines: int = 30) -> str:
        return tail(self.log, lines)

    def wait(self, limit_s: float) -> bool:
        """Whether it ended within `limit_s`."""
        return not wait_gone([self.identity], limit_s)

    def stop(self, grace_s: float) -> None:
        """SIGTERM, a bounded wait, then SIGKILL to it and its descendants. Raises MeasurementError if one survives."""
        family = {self.identity} | descendants([self.identity])
        self.identity.signal(signal.SIGTERM)
        left = wait_gone(family, grace_s)
        for member in left | descendants(left):
            member.signal(signal.SIGKILL)
        if survivors := wait_gone(left, _KILL_WAIT_S):
            pids = sorted(member.pid for member in survivors)
            raise MeasurementError(f"processes {pids} survive SIGKILL; log: {self.log}", self.log_tail())


@dataclass(slots=True)
class Nursery:
    """Made by `nursery`."""

    process: Supervised
    channel: socket.socket
    import_s: float | None = None

    def wait_ready(self) -> float:
        """Wait until vLLM is imported; how long that took in seconds. Raises BootError with the log's tail."""
        if self.import_s is None:
            self.import_s = float(self._answer(IMPORT_LIMIT_S)["import_s"])
        return self.import_s

    def engine(self, environment: Mapping[str, str], log: Path, orders_fd: int, answers_fd: int) -> Newborn:
        """Fork an engine process that reads orders from `orders_fd` and answers to `answers_fd`. Raises BootError."""
        self.wait_ready()
        message = json.dumps({"environment": dict(environment), "log": str(log)}).encode()
        # The length goes ahead: environments are longer than one packet of the stream.
        self.channel.sendall(len(message).to_bytes(8, "big"))
        socket.send_fds(self.channel, [message[:1]], [orders_fd, answers_fd])
        self.channel.sendall(message[1:])
        answer = self._answer(BIRTH_LIMIT_S)
        return Newborn(ProcessIdentity(int(answer["pid"]), int(answer["start_ticks"])), log)

    def _answer(self, limit_s: float) -> dict[str, float]:
        deadline = time.monotonic() + limit_s
        line = b""
        while not line.endswith(b"\n"):
            if not self.process.alive or time.monotonic() > deadline:
                why = "ended" if not self.process.alive else f"did not answer within {limit_s:g} s"
                raise BootError(
                    f"the process that imports vLLM {why}; log: {self.process.log}", self.process.log_tail()
                )
            if select.select([self.channel], [], [], 0.2)[0]:
                line += self.channel.recv(1) or b""
        answer: dict[str, float] = json.loads(line)
        return answer


@contextmanager
def nursery(environment: Mapping[str, str], log: Path) -> Iterator[Nursery]:
    """Start the nursery in the caller's process group; it imports in the background. On exit it is gone."""
    ours, theirs = socket.socketpair()
    with ours:
        argv = [sys.executable, "-m", "orchestrator.nursery_main", "--channel-fd", str(theirs.fileno())]
        with theirs:
            started = supervised(argv, environment, log, grace_s=2.0, pass_fds=(theirs.fileno(),))
            process = started.__enter__()
        try:
            yield Nursery(process, ours)
        finally:
            started.__exit__(*sys.exc_info())
