"""One MPS control daemon for one GPU: its life, proof of who is attached to it, its health, its end.

    with daemon(gpu_uuid) as mps:
        mps.start_server()
        env |= mps.client_environment(token)              # of an engine inside MPS
        with mps.watch() as watchdog:
            ...                                           # engines come and go in here
            watchdog.raise_if_lost()

One daemon a GPU, because a fault ends every client on every GPU of a server.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.errors import MpsError, MpsFault
from orchestrator.guardian import Guardian
from orchestrator.mps_attachment import inside_environment, prove
from orchestrator.mps_control import PIPE_VARIABLE, MpsControl, ServerState, find_binary, scrubbed_environment
from orchestrator.mps_home import MpsHome, end_leftovers, mps_home
from orchestrator.observation import Attachment
from orchestrator.process import ProcessIdentity, Supervised, end, supervised, tail

# Without the persistence daemon a server takes long to come up (NVIDIA MPS documentation, troubleshooting).
SERVER_LIMIT_S = 60.0
QUIT_S = 10.0
# A daemon logs some 220 bytes a command, which at one look every 3 s is 13 MB a day.
LOG_LIMIT_BYTES = 4 * 2**20

_CLIENTS_LEAVE_S = 5.0
_READY_S = 10.0
_POLL_S = 0.1
_FAULT_LINE = re.compile(r"fatal (?:GPU )?(?:error|fault|exception)|\bFAULT\b", re.IGNORECASE)
_SERVER_ENDED = re.compile(r"Server (\d+) exited with status (\d+)")


@dataclass(slots=True)
class MpsDaemon:
    """A running control daemon; made by `daemon`."""

    gpu_uuid: str
    home: MpsHome
    control: MpsControl
    process: Supervised
    server: ProcessIdentity | None = None
    _log_read: dict[Path, int] = field(default_factory=dict)

    def start_server(self, limit_s: float = SERVER_LIMIT_S) -> int:
        """Start this user's server and wait until it is ACTIVE; its pid. Raises MpsError if it does not come up."""
        answer = self.control.start_server(os.getuid())
        deadline = time.monotonic() + limit_s
        state: str = "not listed"
        while time.monotonic() < deadline:
            self._raise_if_daemon_is_dead()
            ended = _SERVER_ENDED.findall("".join(map(self._new_log_text, self._logs())))
            if ended:
                raise self._trouble(f"server {ended[-1][0]} exited with status {ended[-1][1]} at its start")
            state = self._state_of_new_server() or state
            if state == "FAULT":
                raise MpsFault(f"the MPS server of {self.gpu_uuid} came up in FAULT", self.log_tail())
            if state == "ACTIVE" and self.server:
                self.home.write_state(self.gpu_uuid, "active", self.process.identity, self.server.pid)
                return self.server.pid
            time.sleep(_POLL_S)
        raise self._trouble(f"no ACTIVE server within {limit_s:g} s (state: {state}; `start_server` said {answer!r})")

    def client_environment(self, token: str, active_thread_percentage: int = 100) -> dict[str, str]:
        """Variables for an engine inside MPS, see `mps_attachment.inside_environment`."""
        return inside_environment(self.gpu_uuid, self.home.pipe_dir, token, active_thread_percentage)

    def attachment(self, inside: Mapping[str, int], outside: Mapping[str, int] | None = None) -> Attachment:
        """Which engines are clients of this daemon now, see `mps_attachment.prove`."""
        return prove(self.clients(), inside, outside or {})

    def clients(self) -> tuple[int, ...]:
        """Client pids of our server; empty before `start_server`. Raises MpsError if there is no answer."""
        return self.control.clients(self.server.pid) if self.server else ()

    def health(self) -> None:
        """Raises MpsFault if the server is or was in FAULT, MpsError if daemon or server are not what they were."""
        self._raise_if_daemon_is_dead()
        for log in self._logs():
            text = self._new_log_text(log)
            faults = [line for line in text.splitlines() if _FAULT_LINE.search(line) and "Cmd:" not in line]
            if faults:
                raise MpsFault(f"the MPS server of {self.gpu_uuid} logged {faults[0]!r} in {log}", self.log_tail())
            self._cap(log)
        if self.server is None:
            return
        servers = self.control.servers()
        if servers != (self.server.pid,) or not self.server.alive:
            raise self._trouble(f"server {self.server.pid} is gone; the daemon lists {list(servers)}")
        state = self.control.server_state(self.server.pid)
        if state == "FAULT":
            raise MpsFault(
                f"the MPS server of {self.gpu_uuid} is in FAULT: every engine on it is lost", self.log_tail()
            )
        if state != "ACTIVE":
            raise self._trouble(f"server {self.server.pid} is {state}: it was rebuilt under its clients")

    @contextmanager
    def watch(self, interval_s: float = 3.0) -> Iterator[Watchdog]:
        """Look at `health` every `interval_s` beside the work; the first trouble is kept for `raise_if_lost`."""
        stop = threading.Event()

        def look() -> None:
            while not stop.wait(interval_s):
                self.health()

        with ThreadPoolExecutor(1, thread_name_prefix="mps-watchdog") as thread:
            future = thread.submit(look)
            try:
                yield Watchdog(future)
            finally:
                stop.set()

    def log_tail(self) -> str:
        """The ends of the daemon's and the server's logs."""
        return "\n".join(f"--- {log.name}\n{tail(log, 15)}" for log in self._logs())

    def close(self) -> None:
        """Clients out, server and daemon by `quit`, what is left by signals. Raises MpsError if something survives.

        Engines are closed by their own contexts before; a client that is still here is an error of theirs, and gets
        its work broken off before it is killed, because a kill with work in flight leaves the others undefined.
        """
        self.home.write_state(self.gpu_uuid, "closing", self.process.identity, self.server.pid if self.server else None)
        if self.process.alive:
            # A daemon that no longer answers is ended by signals below.
            with contextlib.suppress(MpsError):
                self._put_clients_out()
            with contextlib.suppress(MpsError):
                self.control.quit(QUIT_S)
        self.process.stop(grace_s=2.0)
        end_leftovers(self.home, self.control.binary)

    def _put_clients_out(self) -> None:
        deadline = time.monotonic() + _CLIENTS_LEAVE_S
        while (left := self.clients()) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        for pid in left:
            if self.server:
                with contextlib.suppress(MpsError):
                    self.control.terminate_client(self.server.pid, pid)
        end(_identities(left, self.home.pipe_dir), grace_s=5.0)

    def _state_of_new_server(self) -> ServerState | None:
        """None: not listed, or ended between two commands. Sets `server` once it is ACTIVE."""
        servers = self.control.servers()
        try:
            state = self.control.server_state(servers[0]) if servers else None
            self.server = ProcessIdentity.of(servers[0]) if state == "ACTIVE" else None
        except (MpsError, ProcessLookupError):
            if servers == self.control.servers():
                raise
            return None
        return state

    def _raise_if_daemon_is_dead(self) -> None:
        if not self.process.alive:
            raise self._trouble(f"the control daemon {self.process.identity.pid} ended by itself or was killed")

    def _logs(self) -> list[Path]:
        """Ours with the daemon's output, and control.log and server.log as far as this driver writes them."""
        return sorted(self.home.log_dir.glob("*.log"))

    def _new_log_text(self, log: Path) -> str:
        with log.open("rb") as file:
            start = self._log_read.get(log, 0)
            file.seek(start if start <= log.stat().st_size else 0)
            data = file.read()
            self._log_read[log] = file.tell()
        return data.decode(errors="replace")

    def _cap(self, log: Path) -> None:
        # By blocks, not by length: a writer without O_APPEND leaves a hole before its next line, which costs nothing.
        if log.stat().st_blocks * 512 > LOG_LIMIT_BYTES:
            os.truncate(log, 0)
            self._log_read.pop(log)

    def _trouble(self, what: str) -> MpsError:
        return MpsError(f"MPS on {self.gpu_uuid}: {what}; logs: {self.home.log_dir}", self.log_tail())


@dataclass(frozen=True, slots=True)
class Watchdog:
    """What the watching thread found, if anything."""

    _future: Future[None]

    def raise_if_lost(self) -> None:
        """Raises the first trouble, again on each call."""
        if self._future.done():
            self._future.result()


@contextmanager
def daemon(
    gpu_uuid: str, root: Path | None = None, *, binary: Path | None = None, guard: Guardian | None = None
) -> Iterator[MpsDaemon]:
    """Run a control daemon for the GPU, in the caller's process group, ready for commands.

    root: default /tmp/mps-<uid>; Ray's session folders are too long for sockets. guard: ends it if we are killed.
    Raises MpsError if the GPU's daemon has a living owner, or if this one does not answer.
    """
    binary = binary or find_binary()
    root = root or Path(f"/tmp/mps-{os.getuid()}")
    with mps_home(gpu_uuid, root, binary) as home:
        control = MpsControl(home.pipe_dir, binary)
        environment = {
            **scrubbed_environment(os.environ, home.pipe_dir),
            "CUDA_MPS_LOG_DIRECTORY": str(home.log_dir),
            "CUDA_VISIBLE_DEVICES": gpu_uuid,
            **(guard.environment() if guard else {}),
        }
        with supervised([binary, "-f"], environment, home.log_dir / "daemon.log", grace_s=2.0) as process:
            if guard:
                guard.add_mps_daemon(process.identity, control)
            home.write_state(gpu_uuid, "running", process.identity, None)
            running = MpsDaemon(gpu_uuid, home, control, process)
            try:
                _wait_ready(running)
                yield running
            finally:
                running.close()
                if guard:
                    guard.remove(process.identity)


def _wait_ready(running: MpsDaemon) -> None:
    deadline = time.monotonic() + _READY_S
    while True:
        running._raise_if_daemon_is_dead()
        try:
            running.control.default_active_thread_percentage()
            return
        except MpsError as error:
            if time.monotonic() > deadline:
                raise running._trouble(f"the control daemon does not answer: {error}") from error


def _identities(pids: tuple[int, ...], pipe_dir: Path) -> list[ProcessIdentity]:
    """Live processes among `pids` that were started for this pipe directory."""
    found = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            identity = ProcessIdentity.of(pid)
            if identity.environment().get(PIPE_VARIABLE) == str(pipe_dir):
                found.append(identity)
    return found
