"""A small process that ends what its owner started when the owner dies, however it dies.

    with guardian() as guard:
        guard.add(engine.identity)         # engine started with {**env, **guard.environment()}

The guardian holds the read end of a pipe and only the owner holds the write end. A clean `close` says goodbye and the
guardian leaves without touching anything; an end of file without goodbye, or an owner that no longer lives (a forked
copy of it may keep the pipe open), is its death. So is the death of the raylet a Ray worker belongs to (Ray names it in
the environment): an actor whose raylet was killed can live on for ever with the GPU in its hands, and is ended too.

Then every member, its descendants noted while they lived, and every process that carries the owner's token in its
environment get SIGTERM and, after a grace, SIGKILL, by identity; engines first, MPS daemons after them with `quit`,
because a daemon that goes first takes its clients' work with it.

It runs in a session of its own and belongs to init, so that neither a signal to the owner's group nor a worker that
ends its children on exit reaches it. Death signals (PR_SET_PDEATHSIG) would not do: they follow the parent *thread* and
do not reach grandchildren.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.errors import MeasurementError, MpsError
from orchestrator.mps_control import MpsControl
from orchestrator.process import ProcessIdentity, carrying, descendants, end, wait_gone

TOKEN_VARIABLE = "MPSCAPE_OWNER_TOKEN"
OWN_PREFIX = "mpscape-"

# How long a reply of the new guardian may take, and how often it looks at its owner and its members' children.
_START_LIMIT_S = 30.0
_LOOK_S = 2.0
_QUIT_S = 3.0
# Children that are forked while the others are being ended are found by further looks.
_SWEEPS = 5


class Guardian:
    """The owner's end. Made by `guardian`; safe to use from several threads."""

    def __init__(self, identity: ProcessIdentity, token: str, pipe: int) -> None:
        self.identity = identity
        self._token = token
        self._pipe = pipe
        self._lock = threading.Lock()

    def environment(self) -> dict[str, str]:
        """What members are started with, so that descendants are found whoever their parent is by then."""
        return {TOKEN_VARIABLE: self._token}

    def add(self, member: ProcessIdentity) -> None:
        """End `member` and its descendants if the owner dies. Raises MeasurementError if the guardian is gone."""
        self._say(["+", member.pid, member.start_ticks])

    def add_mps_daemon(self, daemon: ProcessIdentity, control: MpsControl) -> None:
        """As `add`, for a control daemon: after all others, by `quit`, then by signals."""
        self._say(["+", daemon.pid, daemon.start_ticks, str(control.pipe_dir), str(control.binary)])

    def add_folder(self, folder: str) -> None:
        """Remove `folder`, made by `tempfile` with OWN_PREFIX, once all members have ended. For an owner that dies; one
        that lives removes its folders itself."""
        self._say(["folder", folder])

    def remove(self, member: ProcessIdentity) -> None:
        """`member` has ended in good order."""
        self._say(["-", member.pid, member.start_ticks])

    def close(self) -> None:
        """Dismiss the guardian: it leaves and kills nothing."""
        with contextlib.suppress(MeasurementError):
            self._say(["goodbye"])
        os.close(self._pipe)
        wait_gone([self.identity], _START_LIMIT_S)

    def _say(self, message: list[Any]) -> None:
        try:
            with self._lock:
                os.write(self._pipe, json.dumps(message).encode() + b"\n")
        except BrokenPipeError as error:
            raise MeasurementError(
                f"the guardian {self.identity.pid} is gone: nothing would end the engines if this process were killed"
            ) from error


@contextmanager
def guardian(grace_s: float = 5.0) -> Iterator[Guardian]:
    """Start a guardian of the calling process; `grace_s` is from SIGTERM to SIGKILL.

    Raises MeasurementError if it does not come up, or if this is a Ray worker whose raylet is dead.
    """
    token = secrets.token_hex(16)
    reading, writing = os.pipe()
    try:
        identity = _launch(reading, [token, str(grace_s), *_words(_raylet())])
    except BaseException:
        os.close(writing)
        raise
    finally:
        os.close(reading)
    guard = Guardian(identity, token, writing)
    try:
        yield guard
    finally:
        guard.close()


def _launch(reading: int, settings: list[str]) -> ProcessIdentity:
    owner = ProcessIdentity.of(os.getpid())
    # Whoever guards this process must not find its guardian among the members, nor the guardian itself.
    inherited = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}
    environment = {**inherited, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    try:
        reply = subprocess.run(
            [sys.executable, "-S", "-m", "orchestrator.guardian", *_words(owner), *settings],
            env=environment,
            stdin=reading,
            capture_output=True,
            start_new_session=True,
            timeout=_START_LIMIT_S,
            text=True,
            check=True,
        ).stdout
    except subprocess.SubprocessError as error:
        said = getattr(error, "stderr", None) or ""
        raise MeasurementError(f"the guardian process did not start: {error}", str(said)) from error
    pid, start_ticks = map(int, reply.split())
    return ProcessIdentity(pid, start_ticks)


def _raylet() -> ProcessIdentity | None:
    pid = os.environ.get("RAY_RAYLET_PID")
    try:
        return ProcessIdentity.of(int(pid)) if pid else None
    except ProcessLookupError as error:
        raise MeasurementError(f"the raylet {pid} of this worker is dead: its work cannot be reported") from error


def _words(process: ProcessIdentity | None) -> list[str]:
    return [] if process is None else [str(process.pid), str(process.start_ticks)]


class _Watch:
    """The guardian's side: who is to be ended, and what is known of their families."""

    def __init__(self, token: str, grace_s: float) -> None:
        self.token = token
        self.grace_s = grace_s
        self.members: dict[ProcessIdentity, MpsControl | None] = {}
        self.families: dict[ProcessIdentity, set[ProcessIdentity]] = {}
        self.folders: list[Path] = []

    def hear(self, message: list[Any]) -> None:
        if message[0] == "folder":
            self.folders.append(Path(message[1]))
            return
        member = ProcessIdentity(message[1], message[2])
        if message[0] == "-":
            self.members.pop(member, None)
            self.families.pop(member, None)
            return
        self.members[member] = MpsControl(Path(message[3]), Path(message[4]), attempts=2) if message[3:] else None
        self.families[member] = set()

    def look(self) -> None:
        """Note the children that members have now: once a parent is dead, only the note leads to them."""
        for member, family in self.families.items():
            family |= descendants({member, *family})
            family.intersection_update([relative for relative in family if relative.alive])

    def end_all(self) -> None:
        self.look()
        daemons = {member: control for member, control in self.members.items() if control is not None}
        kept_for_last = set(daemons).union(*(self.families[daemon] for daemon in daemons))
        for _ in range(_SWEEPS):
            targets = set(self.members).union(*self.families.values(), carrying(TOKEN_VARIABLE, self.token))
            targets = {target for target in targets | descendants(targets) if target.alive} - kept_for_last
            if not targets:
                break
            end(targets, self.grace_s)
        for daemon, control in daemons.items():
            if daemon.alive:
                # A daemon that hangs is ended by the signals below.
                with contextlib.suppress(MpsError):
                    control.quit(_QUIT_S)
        end(wait_gone(kept_for_last | carrying(TOKEN_VARIABLE, self.token), _QUIT_S), self.grace_s)
        for folder in self.folders:
            if folder.name.startswith(OWN_PREFIX) and folder.parent in (Path("/tmp"), Path(tempfile.gettempdir())):
                shutil.rmtree(folder, ignore_errors=True)


def _serve(watched: list[ProcessIdentity], watch: _Watch) -> None:
    """Until goodbye, or until one of `watched` is dead and the members with it."""
    heard = b""
    looked = time.monotonic()
    while True:
        # Before reading: what a dead owner had to say is in the pipe by now, and must be heard.
        alive = all(process.alive for process in watched)
        ready, _, _ = select.select([0], [], [], _LOOK_S if alive else 0)
        if ready:
            chunk = os.read(0, 65_536)
            *lines, heard = (heard + chunk).split(b"\n")
            for line in lines:
                message = json.loads(line)
                if message == ["goodbye"]:
                    return
                watch.hear(message)
            if not chunk:
                break
        elif not alive:
            break
        if ready or time.monotonic() - looked > _LOOK_S:
            watch.look()
            looked = time.monotonic()
    watch.end_all()
    if watched[0].alive:
        end(watched[:1], watch.grace_s)
        watch.end_all()  # it may have started more meanwhile


def main() -> None:
    """Detach, tell the owner who we are, watch."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.guardian", description="Started by `guardian()`.")
    parser.add_argument("owner", type=int, nargs=2, help="pid and start ticks")
    parser.add_argument("token", help=f"value of {TOKEN_VARIABLE} in the environment of what is to be ended")
    parser.add_argument("grace_s", type=float, help="seconds from SIGTERM to SIGKILL")
    parser.add_argument("raylet", type=int, nargs="*", help="pid and start ticks")
    asked = parser.parse_args()
    if os.fork():
        os._exit(0)
    me = ProcessIdentity.of(os.getpid())
    os.write(1, f"{me.pid} {me.start_ticks}\n".encode())
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.chdir("/")
    watched = [ProcessIdentity(*pair) for pair in (asked.owner, asked.raylet) if pair]
    _serve(watched, _Watch(asked.token, asked.grace_s))


if __name__ == "__main__":
    main()
