"""The folder of one GPU's MPS daemon: who owns it, what a dead owner left in it, how it goes away.

/tmp/mps-<uid>/<gpu8>.lock            held by the living owner; the kernel frees it with the process
/tmp/mps-<uid>/<gpu8>/state.json      who owner and daemon are, by pid and start time
/tmp/mps-<uid>/<gpu8>/{pipe,log}      what the daemon gets
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import MpsError
from orchestrator.mps_attachment import TOKEN_VARIABLE
from orchestrator.mps_control import BINARY_NAME, PIPE_VARIABLE
from orchestrator.process import ProcessIdentity, carrying, end

SERVER_NAME = "nvidia-cuda-mps-server"

# A pipe directory of 87 characters works and 88 fails (sun_path, control_privileged is the longest name): keep away.
MAX_PIPE_LENGTH = 80

_UUID = re.compile(r"(?:GPU|MIG)-([0-9a-f]{8})-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class MpsHome:
    """Paths only; made by `mps_home`, which also holds the lock."""

    folder: Path

    @property
    def pipe_dir(self) -> Path:
        return self.folder / "pipe"

    @property
    def log_dir(self) -> Path:
        return self.folder / "log"

    @property
    def state_file(self) -> Path:
        return self.folder / "state.json"

    def write_state(self, gpu_uuid: str, phase: str, daemon: ProcessIdentity | None, server_pid: int | None) -> None:
        """Replace the state file in one step, so that a reader never sees half of one."""
        owner = ProcessIdentity.of(os.getpid())
        state = {
            "gpu_uuid": gpu_uuid,
            "phase": phase,
            "owner": [owner.pid, owner.start_ticks],
            "daemon": [daemon.pid, daemon.start_ticks] if daemon else None,
            "server_pid": server_pid,
        }
        draft = self.state_file.with_suffix(".new")
        draft.write_text(json.dumps(state))
        draft.replace(self.state_file)


@contextmanager
def mps_home(gpu_uuid: str, root: Path, binary: Path) -> Iterator[MpsHome]:
    """The private, empty folder of `gpu_uuid` under `root`, ours alone inside the context and removed after it.

    What an owner that died left running is ended first. `root` itself stays. Raises MpsError if another owner lives,
    if `gpu_uuid` is no UUID, if the path is too long for a socket, or if the folder is not private to this user.
    """
    match = _UUID.fullmatch(gpu_uuid)
    if match is None:
        raise MpsError(f"{gpu_uuid!r} is no GPU UUID: ordinals mean another GPU inside a daemon (`nvidia-smi -L`)")
    home = MpsHome(root / match[1])
    if len(os.fspath(home.pipe_dir)) > MAX_PIPE_LENGTH:
        raise MpsError(f"{home.pipe_dir} is longer than {MAX_PIPE_LENGTH} characters: sockets need a shorter root")
    _make_private(root)
    with _owned(root / f"{match[1]}.lock", home):
        end_leftovers(home, binary)
        if home.folder.exists():
            shutil.rmtree(home.folder)
        for folder in (home.folder, home.pipe_dir, home.log_dir):
            _make_private(folder)
        home.write_state(gpu_uuid, "starting", None, None)
        try:
            yield home
        finally:
            # Never while something still uses it: an orphaned daemon would let a second one start on the GPU unseen.
            if not any(_users(home, binary)):
                shutil.rmtree(home.folder)


def end_leftovers(home: MpsHome, binary: Path) -> None:
    """End engines, then the daemon and its servers, that still use `home`; raises MpsError if one survives.

    Only call it as the owner. They are found by their environment, which names our private pipe directory, and by
    what they run, not by a pid that was written down: nothing else can be hit.
    """
    engines, daemons = _users(home, binary)
    survivors = end(engines, grace_s=5.0) | end(daemons, grace_s=5.0)
    if survivors:
        pids = sorted(process.pid for process in survivors)
        raise MpsError(f"processes {pids} that use {home.folder} survive SIGKILL: the GPU needs an operator")


def _users(home: MpsHome, binary: Path) -> tuple[frozenset[ProcessIdentity], frozenset[ProcessIdentity]]:
    """Engines that were started for our pipe directory; control daemons and servers that were."""
    users = carrying(PIPE_VARIABLE, str(home.pipe_dir))
    engines = frozenset(process for process in users if TOKEN_VARIABLE in process.environment())
    # A script's command line starts with its interpreter.
    names = {BINARY_NAME, SERVER_NAME, binary.name}
    daemons = frozenset(process for process in users if names & {Path(part).name for part in process.command()[:2]})
    return engines, daemons - engines


@contextmanager
def _owned(lock_file: Path, home: MpsHome) -> Iterator[None]:
    handle = _lock(lock_file, home)
    try:
        yield
    finally:
        # While the lock is held: whoever opened it meanwhile looks whether the path still means that file.
        lock_file.unlink()
        os.close(handle)


def _lock(lock_file: Path, home: MpsHome) -> int:
    while True:
        handle = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            state = _read_state(home)
            raise MpsError(
                f"the MPS daemon of {home.folder} belongs to the live process {state.get('owner', ['?'])[0]} "
                f"(daemon {(state.get('daemon') or ['?'])[0]}): one owner a GPU; end that one first"
            ) from error
        if _same_file(handle, lock_file):
            return handle
        os.close(handle)


def _same_file(handle: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(handle)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _read_state(home: MpsHome) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads(home.state_file.read_text())
    except FileNotFoundError:
        return {}
    return state


def _make_private(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or stat.S_IMODE(facts.st_mode) & 0o077:
        raise MpsError(f"{folder} is not a folder of this user alone (mode 0700): someone else made it; remove it")
