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
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import MpsError, MpsFault
from orchestrator.guardian import Guardian
from orchestrator.mps_attachment import inside_environment, prove
from orchestrator.mps_control import PIPE_VARIABLE, MpsControl, ServerState, find_binary, scrubbed_environment
from orchestrator.mps_home import MpsHome, end_leftovers, mps_home
from orchestrator.mps_log import FAULT_LINE, SERVER_ENDED, MpsLogs
from orchestrator.observation import Attachment
from orchestrator.process import ProcessIdentity, Supervised, carrying, end, supervised

# Without the persistence daemon a server takes long to come up (NVIDIA MPS documentation, troubleshooting).
SERVER_LIMIT_S = 60.0
QUIT_S = 10.0
_CLIENTS_LEAVE_S = 5.0
_READY_S = 10.0
_POLL_S = 0.1


@dataclass(slots=True)
class MpsDaemon:
    """A running control daemon; made by `daemon`."""

    gpu_uuid: str
    home: MpsHome
    control: MpsControl
    process: Supervised
    logs: MpsLogs
    server: ProcessIdentity | None = None

    def start_server(self, limit_s: float = SERVER_LIMIT_S) -> int:
        """Start this user's server and wait until it is ACTIVE; its pid. Raises MpsError if it does not come up."""
        answer = self.control.start_server(os.getuid())
        deadline = time.monotonic() + limit_s
        state: str = "not listed"
        while time.monotonic() < deadline:
            self._raise_if_daemon_is_dead()
            ended = SERVER_ENDED.findall("\n".join(self.logs.new_lines()))
            if ended:
                raise self._trouble(f"server {ended[-1][0]} exited with status {ended[-1][1]} at its start")
            state = self._state_of_new_server() or state
            if state == "FAULT":
                raise MpsFault(f"the MPS server of {self.gpu_uuid} came up in FAULT", self.logs.tail())
            if state == "ACTIVE" and self.server:
                self.home.write_state(self.gpu_uuid, "active", self.process.identity, self.server.pid)
                return self.server.pid
            time.sleep(_POLL_S)
        raise self._trouble(f"no ACTIVE server within {limit_s:g} s (state: {state}; `start_server` said {answer!r})")

    def client_environment(self, token: str, active_thread_percentage: int = 100) -> dict[str, str]:
        """For an engine inside MPS, see `mps_attachment.inside_environment`."""
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
        faults = [line for line in self.logs.new_lines() if FAULT_LINE.search(line)]
        if faults:
            raise MpsFault(f"the MPS server of {self.gpu_uuid} logged {faults[0]!r}", self.logs.tail())
        if self.server is None:
            return
        servers = self.control.servers()
        if servers != (self.server.pid,) or not self.server.alive:
            raise self._trouble(f"server {self.server.pid} is gone; the daemon lists {list(servers)}")
        state = self.control.server_state(self.server.pid)
        if state == "FAULT":
            raise MpsFault(
                f"the MPS server of {self.gpu_uuid} is in FAULT: every engine on it is lost", self.logs.tail()
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
        ours = carrying(PIPE_VARIABLE, str(self.home.pipe_dir))
        end([process for process in ours if process.pid in left], grace_s=5.0)

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

    def _trouble(self, what: str) -> MpsError:
        return MpsError(f"MPS on {self.gpu_uuid}: {what}; logs: {self.home.log_dir}", self.logs.tail())


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
        logs = MpsLogs(home.log_dir)
        with supervised([binary, "-f"], environment, logs.output, grace_s=2.0) as process:
            if guard:
                guard.add_mps_daemon(process.identity, control)
            home.write_state(gpu_uuid, "running", process.identity, None)
            running = MpsDaemon(gpu_uuid, home, control, process, logs)
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
