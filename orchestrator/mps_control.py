"""The command channel of an MPS control daemon: text in, typed answers out.

The control binary ends with status 0 on errors, and when two copies of it talk to one daemon at a time most of them
come back with nothing and status 0. So every command goes through `MpsControl.run`: one at a time per pipe directory
over all processes, ended by a command whose answer is known to be a percentage. Without that last line there was no
answer, and no answer is never read as "no servers".
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from orchestrator.errors import MpsError

ServerState = Literal["INITIALIZING", "ACTIVE", "FAULT"]

PIPE_VARIABLE = "CUDA_MPS_PIPE_DIRECTORY"
BINARY_NAME = "nvidia-cuda-mps-control"
# Where drivers and container images put it when it is not on PATH.
BINARY_FOLDERS = ("/usr/bin", "/usr/local/nvidia/bin", "/usr/local/bin")

_SENTINEL = "get_default_active_thread_percentage"
# Always printed with a decimal point, which tells it from a pid.
_PERCENTAGE = re.compile(r"\d{1,3}\.\d+")
_LOCK_FILE = "command.lock"
_LOCK_LIMIT_S = 60.0


def find_binary() -> Path:
    """The control binary on PATH or where drivers put it. Raises MpsError if there is none."""
    found = shutil.which(BINARY_NAME) or shutil.which(BINARY_NAME, path=os.pathsep.join(BINARY_FOLDERS))
    if found is None:
        raise MpsError(
            f"{BINARY_NAME} is neither on PATH nor in {', '.join(BINARY_FOLDERS)}: it comes with the NVIDIA driver "
            "(package nvidia-cuda-mps or nvidia-compute-utils); sweeps without mps arms run without it"
        )
    return Path(found)


def scrubbed_environment(environment: Mapping[str, str], pipe_dir: Path) -> dict[str, str]:
    """`environment` without any CUDA_MPS_* of someone else's, pointing at `pipe_dir`.

    The rest stays: a server that is started without PATH, HOME and LD_LIBRARY_PATH ends with status 1.
    """
    kept = {name: value for name, value in environment.items() if not name.startswith("CUDA_MPS_")}
    return {**kept, PIPE_VARIABLE: str(pipe_dir)}


@dataclass(frozen=True, slots=True)
class MpsControl:
    """Commands for the daemon behind `pipe_dir`. `timeout_s`: of one attempt; `attempts`: before MpsError."""

    pipe_dir: Path
    binary: Path
    timeout_s: float = 5.0
    attempts: int = 6

    def run(self, commands: Sequence[str]) -> list[str]:
        """The raw answer to each command, in order, without its closing sentinel line.

        Raises MpsError if the daemon cannot be reached, does not answer in time, or every attempt lost its answer.
        """
        with self._alone():
            return [self._ask(command) for command in commands]

    def servers(self) -> tuple[int, ...]:
        """Pids of the servers; one at most per user."""
        return self._pids("get_server_list")

    def server_state(self, server: int) -> ServerState:
        """Raises MpsError for a server that is not there, or a driver without this command (older than 550)."""
        command = f"get_server_status {server}"
        answer = self._answer(command)
        if answer not in get_args(ServerState):
            raise self._unexpected(command, answer)
        return cast(ServerState, answer)

    def clients(self, server: int) -> tuple[int, ...]:
        """Pids of the server's clients, as the daemon's pid namespace numbers them."""
        return self._pids(f"get_client_list {server}")

    def default_active_thread_percentage(self) -> float:
        return self._percentage(_SENTINEL)

    def set_default_active_thread_percentage(self, percentage: float) -> None:
        """For servers that start later. Raises MpsError unless it reads back: a bad value is dropped without a word."""
        command = f"set_default_active_thread_percentage {percentage:g}"
        self._answer(command)
        now = self.default_active_thread_percentage()
        if abs(now - percentage) > 0.1:
            raise MpsError(f"{command}: reads back {now:g}; {self._where()}")

    def start_server(self, uid: int) -> str:
        """Ask for a server; returns what was printed. It comes up, or fails, later: poll `servers`, `server_state`."""
        return self._answer(f"start_server -uid {uid}")

    def terminate_client(self, server: int, client: int) -> None:
        """Break off one client's work; it then fails with CUDA error 810. Raises MpsError unless CUDA says 0."""
        command = f"terminate_client {server} {client}"
        answer = self._answer(command)
        if answer.splitlines()[-1:] != ["0"]:
            raise self._unexpected(command, answer)

    def quit(self, limit_s: float) -> None:
        """Ask the daemon to end its servers within `limit_s`, then itself. Whether it did is for the caller to see."""
        with self._alone():
            self._talk(f"quit -t {max(1, round(limit_s))}", limit_s + self.timeout_s)

    def _pids(self, command: str) -> tuple[int, ...]:
        answer = self._answer(command)
        lines = answer.split()
        if not all(line.isdecimal() for line in lines):
            raise self._unexpected(command, answer)
        return tuple(int(line) for line in lines)

    def _percentage(self, command: str) -> float:
        answer = self._answer(command)
        if not _PERCENTAGE.fullmatch(answer):
            raise self._unexpected(command, answer)
        return float(answer)

    def _answer(self, command: str) -> str:
        return self.run([command])[0]

    def _ask(self, command: str) -> str:
        text = ""
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(0.02 * 2**attempt)
            text = self._talk(f"{command}\n{_SENTINEL}", self.timeout_s)
            lines = text.splitlines()
            if lines and _PERCENTAGE.fullmatch(lines[-1].strip()):
                return "\n".join(line.strip() for line in lines[:-1])
        raise MpsError(f"`{command}` got no answer in {self.attempts} attempts, last {text.strip()!r}; {self._where()}")

    def _talk(self, batch: str, limit_s: float) -> str:
        # Commands go by standard input: as arguments they are ignored by drivers up to 550.
        try:
            return subprocess.run(
                [self.binary],
                input=f"{batch}\n",
                env=scrubbed_environment(os.environ, self.pipe_dir),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=limit_s,
                text=True,
                check=False,
            ).stdout
        except subprocess.TimeoutExpired as error:
            raise MpsError(f"no answer to {batch.splitlines()[0]!r} within {limit_s:g} s; {self._where()}") from error
        except OSError as error:
            raise MpsError(f"cannot run {self.binary}: {error}") from error

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One command at a time per pipe directory; the kernel frees the lock of a holder that was killed."""
        try:
            handle = os.open(self.pipe_dir / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError as error:
            raise MpsError(f"the pipe directory {self.pipe_dir} is gone: the daemon was torn down") from error
        try:
            deadline = time.monotonic() + _LOCK_LIMIT_S
            while not _try_lock(handle):
                if time.monotonic() > deadline:
                    raise MpsError(f"other processes hold the command channel of {self.pipe_dir} for {_LOCK_LIMIT_S} s")
                time.sleep(0.003)
            yield
        finally:
            os.close(handle)

    def _unexpected(self, command: str, answer: str) -> MpsError:
        return MpsError(f"`{command}` was answered with {answer!r}; {self._where()}")

    def _where(self) -> str:
        return f"daemon at {self.pipe_dir}, its logs in {self.pipe_dir.parent / 'log'}"


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
