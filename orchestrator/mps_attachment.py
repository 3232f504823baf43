"""Proof that an engine is, or is not, a client of an MPS daemon.

A process that finds no daemon runs time-sliced without a word, so attachment is proved, never assumed. A pid that the
daemon lists as a client is known in one of two ways: /proc/PID/environ shows the random token of one of our engines,
or, since a forked process shows the environment of its forefather, it is the EngineCore that the engine itself named
when it came up. A pid known in neither way is a stranger. The pid of what was started proves nothing: the client is
its child.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.errors import MpsError
from orchestrator.mps_control import PIPE_VARIABLE
from orchestrator.observation import Attachment
from orchestrator.process import ProcessIdentity

TOKEN_VARIABLE = "MPSCAPE_ENGINE_TOKEN"

BY_CLIENT_LIST = "client-list+token"
BY_PID = "client-list+pid"  # some engine was forked, so that /proc shows no token of its own
BY_ENVIRONMENT = "no-daemon+token"


def inside_environment(
    gpu_uuid: str, pipe_dir: Path, token: str, active_thread_percentage: int = 100
) -> dict[str, str]:
    """Variables for an engine inside MPS; for an environment that `scrubbed_environment` cleaned.

    active_thread_percentage: cap on the share of SMs this engine may use; 100 sets none.
    """
    cap = {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": str(active_thread_percentage)}
    return {
        PIPE_VARIABLE: str(pipe_dir),
        "CUDA_VISIBLE_DEVICES": gpu_uuid,
        TOKEN_VARIABLE: token,
        **(cap if active_thread_percentage < 100 else {}),
    }


def outside_environment(gpu_uuid: str, token: str, root: Path | None = None) -> dict[str, str]:
    """Variables for an engine that must run without MPS: a pipe directory that never is one.

    Without it the engine would look in /tmp/nvidia-mps, where the machine may have a daemon of its own.
    """
    root = root or Path(f"/tmp/mps-{os.getuid()}")
    return inside_environment(gpu_uuid, root / "no-daemon", token)


def prove(listed: Sequence[int], inside: Mapping[str, int], outside: Mapping[str, int]) -> Attachment:
    """Hold the client list of a daemon against the engines.

    listed: the pids that the daemon named. inside, outside: token -> pid of the process that computes (EngineCore), for
    the engines that must be clients and those that must not. In the answer, `attached` are the listed pids with a token
    of `inside`; `detached` are the engines of `outside` that live with their token and are listed by neither.
    Raises MpsError for a client without any of these tokens: nobody else may be in a private daemon.
    """
    known = {pid: token for token, pid in (*inside.items(), *outside.items())}
    tokens = {pid: _token(pid) or known.get(pid, "") for pid in listed}
    strangers = sorted(pid for pid, token in tokens.items() if token not in inside and token not in outside)
    if strangers:
        raise MpsError(f"processes {strangers} are clients of the MPS daemon and carry none of its engines' tokens")
    present = {token: pid for token, pid in outside.items() if (_token(pid) or token) == token and _lives(pid)}
    return Attachment(
        expected=tuple(sorted(inside.values())),
        attached=tuple(sorted(pid for pid, token in tokens.items() if token in inside)),
        detached=tuple(
            sorted(pid for token, pid in present.items() if pid not in tokens and token not in tokens.values())
        ),
        should_be_detached=tuple(sorted(outside.values())),
        method=BY_CLIENT_LIST if all(_token(pid) for pid in (*inside.values(), *outside.values())) else BY_PID,
    )


def prove_without_daemon(outside: Mapping[str, int], pipe_dirs: Mapping[str, str]) -> Attachment:
    """The reverse where no daemon of ours runs: the pipe directory that each engine reads, by token, has no socket."""
    detached = [
        pid
        for token, pid in outside.items()
        if _lives(pid) and (_token(pid) or token) == token and not (Path(pipe_dirs[token]) / "control").exists()
    ]
    return Attachment(
        detached=tuple(sorted(detached)), should_be_detached=tuple(sorted(outside.values())), method=BY_ENVIRONMENT
    )


def _token(pid: int) -> str:
    """The token in the environment that `pid` was executed with; empty for one that was forked, or is gone."""
    try:
        return ProcessIdentity.of(pid).environment().get(TOKEN_VARIABLE, "")
    except ProcessLookupError:
        return ""


def _lives(pid: int) -> bool:
    try:
        return ProcessIdentity.of(pid).alive
    except ProcessLookupError:
        return False
