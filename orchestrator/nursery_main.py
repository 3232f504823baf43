"""The nursery's own process: import vLLM, then fork an engine for each order (see `orchestrator.nursery`)."""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import socket
import sys
import time
import traceback
from typing import Any

from orchestrator.process import ProcessIdentity


def preload() -> None:
    """Import what an engine needs, in its frontend and in EngineCore, without touching CUDA."""
    import torch
    import vllm.entrypoints.llm
    import vllm.model_executor.models.registry
    import vllm.v1.engine.async_llm
    import vllm.v1.engine.core
    import vllm.v1.executor.uniproc_executor  # noqa: F401

    import orchestrator.engine_main  # noqa: F401
    import workloads.vllm_target  # noqa: F401

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        raise RuntimeError("importing vLLM initialised CUDA, which does not survive a fork")


def serve(channel: socket.socket) -> None:
    """Fork until the channel closes. Returns in the nursery only; a child never comes back."""
    began = time.monotonic()
    preload()
    gc.collect()
    gc.freeze()  # what is shared with the children stays out of their collections, and so stays shared
    signal.signal(signal.SIGCHLD, _reap)
    _say(channel, {"import_s": time.monotonic() - began})
    while header := _exactly(channel, 8):
        order, descriptors = _order(channel, int.from_bytes(header, "big"))
        pid = os.fork()
        if pid == 0:
            channel.close()
            _live(order, *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        identity = ProcessIdentity.of(pid)
        _say(channel, {"pid": identity.pid, "start_ticks": identity.start_ticks})


def _order(channel: socket.socket, length: int) -> tuple[dict[str, Any], list[int]]:
    first, descriptors, _, _ = socket.recv_fds(channel, 1, 2)
    return json.loads(first + _exactly(channel, length - 1)), list(descriptors)


def _live(order: dict[str, Any], orders_fd: int, answers_fd: int) -> None:
    """Become an engine process; ends with `_exit`, so that nothing of the nursery runs in it."""
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        os.environ.clear()
        os.environ.update(order["environment"])
        from orchestrator.engine_main import run

        run(orders_fd, answers_fd)
        status = 0
    except BaseException:  # noqa: BLE001 - the last frame of a forked process: what it cannot say here, nobody hears
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _reap(*_: Any) -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _exactly(channel: socket.socket, length: int) -> bytes:
    """`length` bytes, or none where the channel closed."""
    data = b""
    while len(data) < length:
        part = channel.recv(length - len(data))
        if not part:
            return b""
        data += part
    return data


def _say(channel: socket.socket, message: dict[str, Any]) -> None:
    channel.sendall(json.dumps(message).encode() + b"\n")


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--channel-fd", type=int, required=True)
    with socket.socket(fileno=parser.parse_args().channel_fd) as channel:
        channel.set_inheritable(False)
        serve(channel)
    return 0


if __name__ == "__main__":
    sys.exit(main())
