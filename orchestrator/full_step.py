"""The engine process's part of a replayed window: have EngineCore come to a full step, and fetch what it made of it.

    outcome = await replay(loop, order)

Steps full of prompts seldom come by themselves: clients with no more prompts than one step takes would all have to
return between two steps, and asynchronous scheduling has the next step under way before the last one's clients are
back. So the scheduler is paused, every client's request gathers in its queue, and the first step after that is full.
A full decode step comes by itself, once every client's prompt is in. What happens in EngineCore is in
`orchestrator.step_replay`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from workloads.closed_loop import ClosedLoop

ASKED = ("tokens", "sequences", "decode", "profile_steps")  # of an order: what EngineCore is asked for
POLL_S = 0.005


async def replay(loop: ClosedLoop, order: dict[str, Any]) -> dict[str, Any]:
    """Have the engine replay the next step that is full enough; what `StepReplay.mpscape_replayed` tells, or the error
    that none came within the order's `limit_s`."""
    engine = loop.target.engine  # type: ignore[attr-defined]
    until = time.monotonic() + order["limit_s"]
    async with contextlib.nullcontext() if order["decode"] else _gathered(engine, loop, until):
        await engine.collective_rpc("mpscape_replay", args=tuple(order[name] for name in ASKED))
    while (outcome := (await engine.collective_rpc("mpscape_replayed"))[0]) is None:
        if time.monotonic() > until:
            await engine.collective_rpc("mpscape_forget")
            late = (await engine.collective_rpc("mpscape_replayed"))[0]  # it came at the last moment
            return late or {"error": f"no step of {order['tokens']} tokens came within {order['limit_s']:.0f} s"}
        await asyncio.sleep(POLL_S)
    found: dict[str, Any] = outcome
    return found


@contextlib.asynccontextmanager
async def _gathered(engine: Any, loop: ClosedLoop, until: float) -> AsyncIterator[None]:
    """Within the block nothing is scheduled, and every client's request waits, unless that took too long."""
    await engine.pause_generation(mode="keep", clear_cache=False)
    try:
        for _ in range(int((until - time.monotonic()) / POLL_S)):
            if loop.unanswered == loop.load.clients:
                break
            await asyncio.sleep(POLL_S)
        yield
    finally:
        await engine.resume_generation()
