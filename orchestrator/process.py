"""A process by identity, and a child that never outlives its context.

A pid alone names nothing: it is reused, and a dead child that nobody reaped still answers `kill(pid, 0)` and still has
a folder under /proc. An identity is the pid with its start time (field 22 of /proc/PID/stat); alive means the same
start time and a state other than Z or X. Signals go through a pidfd, so they cannot hit a process that took the pid.
Standard library only, because the guardian must start in milliseconds.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from orchestrator.errors import MeasurementError

_POLL_S = 0.03
# The kernel ends a killed process once its system call returns; on a busy GPU the driver's take longest.
_KILL_WAIT_S = 10.0
_DEAD = frozenset("ZXx")


@dataclass(frozen=True, slots=True, order=True)
class ProcessIdentity:
    """`start_ticks`: clock ticks after boot at which the process started."""

    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity:
        """The identity of a running process. Raises ProcessLookupError if there is none, or only a zombie."""
        stat = _stat(pid)
        if stat is None or stat.state in _DEAD:
            raise ProcessLookupError(errno.ESRCH, f"no live process {pid}")
        return stat.identity

    @property
    def alive(self) -> bool:
        stat = _stat(self.pid)
        return stat is not None and stat.identity == self and stat.state not in _DEAD

    def signal(self, number: int) -> bool:
        """Send a signal to this very process; False if it is gone. Raises PermissionError for another user's."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        except OSError as error:
            # Sandboxed kernels (gVisor) may lack pidfd: what is left is the check just before the signal.
            if error.errno not in (errno.ENOSYS, errno.EPERM):
                raise
            return self.alive and _kill(self.pid, number)
        try:
            if not self.alive:
                return False
            signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(handle)
        return True

    def environment(self) -> Mapping[str, str]:
        """The environment it was started with; empty if it is gone or belongs to another user."""
        pairs = (entry.partition("=") for entry in self._words("environ") if "=" in entry)
        return {name: value for name, _, value in pairs}

    def command(self) -> tuple[str, ...]:
        """Its command line; empty if it is gone or a zombie."""
        return self._words("cmdline")

    def _words(self, file: str) -> tuple[str, ...]:
        try:
            raw = Path(f"/proc/{self.pid}/{file}").read_bytes()
        except OSError:
            return ()
        words = tuple(word.decode(errors="replace") for word in raw.split(b"\0") if word)
        return words if self.alive else ()


def descendants(roots: Iterable[ProcessIdentity]) -> frozenset[ProcessIdentity]:
    """The live children of `roots`, their children and so on, as the parent links stand now; roots left out."""
    children: dict[int, list[ProcessIdentity]] = {}
    for stat in _stats():
        if stat.state not in _DEAD:
            children.setdefault(stat.parent, []).append(stat.identity)
    found: set[ProcessIdentity] = set()
    ahead = [root.pid for root in roots if root.alive]
    while ahead:
        for child in children.get(ahead.pop(), ()):
            if child not in found:
                found.add(child)
                ahead.append(child.pid)
    return frozenset(found)


def carrying(variable: str, value: str) -> frozenset[ProcessIdentity]:
    """Live processes started with `variable=value` in their environment, as far as this user may read it."""
    entry = f"{variable}={value}"
    processes = [stat.identity for stat in _stats() if stat.state not in _DEAD]
    return frozenset(process for process in processes if entry in process._words("environ"))


def end(members: Iterable[ProcessIdentity], grace_s: float) -> frozenset[ProcessIdentity]:
    """SIGTERM, at most `grace_s` of waiting, SIGKILL to what is left; returns what survived even that."""
    left = [member for member in members if member.signal(signal.SIGTERM)]
    left = list(wait_gone(left, grace_s))
    for member in left:
        member.signal(signal.SIGKILL)
    return wait_gone(left, _KILL_WAIT_S)


def wait_gone(members: Iterable[ProcessIdentity], limit_s: float) -> frozenset[ProcessIdentity]:
    """Wait until none of `members` lives; returns those that still do after `limit_s`."""
    deadline = time.monotonic() + limit_s
    left = frozenset(member for member in members if member.alive)
    while left and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        left = frozenset(member for member in left if member.alive)
    return left


@dataclass(frozen=True, slots=True)
class Supervised:
    """A running child. `log` collects its standard error, and its output unless that was asked for as a pipe."""

    popen: subprocess.Popen[bytes]
    identity: ProcessIdentity
    log: Path

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    def log_tail(self, lines: int = 30) -> str:
        return tail(self.log, lines)

    def stop(self, grace_s: float) -> None:
        """SIGTERM to the child, wait, then SIGKILL to it and to every descendant it had.

        Raises MeasurementError if one of them survives. Descendants are noted while the child lives, because those
        whose parent has died belong to init and can no longer be found by their parents.
        """
        family = {self.identity} | descendants([self.identity])
        if self.alive:
            self.popen.terminate()
        deadline = time.monotonic() + grace_s
        while self.alive and time.monotonic() < deadline:
            family |= descendants([self.identity])
            time.sleep(_POLL_S)
        family |= descendants(family)
        # A child that ended in good order gets the rest of the grace for its descendants to follow it.
        left = wait_gone(family - {self.identity}, max(0.0, deadline - time.monotonic())) if not self.alive else family
        for member in left | descendants(left):
            member.signal(signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self.popen.wait(_KILL_WAIT_S)
        survivors = wait_gone(left, _KILL_WAIT_S)
        if survivors:
            pids = sorted(member.pid for member in survivors)
            raise MeasurementError(
                f"processes {pids} of {self.popen.args!r} survive SIGKILL; log: {self.log}", self.log_tail()
            )


@contextmanager
def supervised(
    argv: Sequence[str | Path],
    env: Mapping[str, str],
    log: Path,
    *,
    grace_s: float = 10.0,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
    pass_fds: Sequence[int] = (),
    cwd: Path | None = None,
) -> Iterator[Supervised]:
    """Run `argv` in the caller's process group, with exactly `env`; nothing of it is left on exit.

    The group is kept (no setsid) so that whoever ends the owner's group ends the child too. `log` is opened for
    appending, so it may be cut while the child writes. Raises OSError if the program cannot be started.
    """
    with log.open("ab", buffering=0) as sink:
        popen = subprocess.Popen(
            [os.fspath(part) for part in argv],
            env=dict(env),
            stdin=stdin,
            stdout=sink if stdout is None else stdout,
            stderr=sink,
            pass_fds=tuple(pass_fds),
            cwd=cwd,
        )
    child = Supervised(popen, _identity_of_child(popen), log)
    try:
        yield child
    finally:
        child.stop(grace_s)
        for stream in (popen.stdin, popen.stdout):
            if stream is not None:
                stream.close()


def tail(path: Path, lines: int = 30, limit_bytes: int = 32_768) -> str:
    """The last lines of a log; empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - limit_bytes))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


@dataclass(frozen=True, slots=True)
class _Stat:
    identity: ProcessIdentity
    parent: int
    state: str


def _stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may hold spaces and parentheses: the fields start after the last one.
    fields = text.rpartition(")")[2].split()
    return _Stat(ProcessIdentity(pid, int(fields[19])), int(fields[1]), fields[0])


def _stats() -> Iterator[_Stat]:
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and (stat := _stat(int(entry.name))) is not None:
            yield stat


def _identity_of_child(popen: subprocess.Popen[bytes]) -> ProcessIdentity:
    """Of a child that may already be a zombie, but is not reaped, so its entry stands."""
    stat = _stat(popen.pid)
    if stat is None:
        raise ProcessLookupError(errno.ESRCH, f"child {popen.pid} was reaped by someone else")
    return stat.identity


def _kill(pid: int, number: int) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
