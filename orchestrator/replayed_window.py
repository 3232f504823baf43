"""The parent's side of a replayed window: bring every engine of an arm to a full step, then let all replay at once.

    start_ns, end_ns = begin(engines, clients, order)

What happens in the engine is in `orchestrator.step_replay`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from orchestrator.engine import Engine
from orchestrator.errors import EngineCrashed, WindowError
from orchestrator.observation import WindowOrder

# A step is full if it has this share of what an engine could batch: chunks of prompts do not always come out even.
FULL_STEP = 0.95
# Until a full step comes, of clients that are all under way already: prompts are gathered for it, decodes are there.
STEP_LIMIT_S = 20.0
# To capture it, with all engines of the arm at it.
CAPTURE_LIMIT_S = 60.0
# Replays run for this long before they are counted: all engines are then at it, and the clock is that of the load.
SETTLE_S = 0.3
ANSWER_LIMIT_S = 60.0
POLL_S = 0.001


def begin(engines: Sequence[Engine], clients: Sequence[int], order: WindowOrder) -> tuple[int, int]:
    """Edges of the window in monotonic ns, once every engine has a step of its own to replay.

    Raises WindowError where an engine has none in time, EngineCrashed where one died.
    """
    decode = order.workload.phase == "decode"
    for engine, count in zip(engines, clients, strict=True):
        room = min(engine.facts["max_num_batched_tokens"], count * order.workload.prompt_tokens)
        engine.order(
            {
                "op": "replay",
                "tokens": count if decode else int(FULL_STEP * room),
                "sequences": count,
                "decode": decode,
                "profile_steps": order.profile_steps,
                "limit_s": STEP_LIMIT_S,
            }
        )
    deadline = time.monotonic() + STEP_LIMIT_S + CAPTURE_LIMIT_S
    while not all(engine.counters.replay_ready for engine in engines):
        try:
            for engine in engines:
                engine.raise_if_dead()
        except EngineCrashed:
            _let_go(engines)
            raise
        # Who answers before it was given a window has no step to replay.
        if time.monotonic() > deadline or any(engine.has_answered() for engine in engines):
            raise WindowError(_given_up(engines))
        time.sleep(POLL_S)
    start_ns = time.monotonic_ns() + int(SETTLE_S * 1e9)
    end_ns = start_ns + int(order.window_s * 1e9)
    for engine in engines:
        engine.counters.replay_between(start_ns, end_ns)
    return start_ns, end_ns


def _given_up(engines: Sequence[Engine]) -> str:
    """Let every engine go that stands at a step, or comes to stand at one, and say why there is no window."""
    deadline = time.monotonic() + STEP_LIMIT_S + CAPTURE_LIMIT_S
    while time.monotonic() < deadline and not all(engine.has_answered() for engine in engines):
        _let_go(engines)
        time.sleep(POLL_S)
    answers = [engine.expect("window", ANSWER_LIMIT_S)[0] for engine in engines]
    reasons = [answer["replay"].get("error") for answer in answers]
    told = "; ".join(
        f"{engine.launch.name}: {reason}; log: {engine.launch.log}"
        for engine, reason in zip(engines, reasons, strict=True)
        if reason
    )
    return told or "not every engine came to stand at a step in time"


def _let_go(engines: Sequence[Engine]) -> None:
    """Have those that stand at a step go on."""
    now_ns = time.monotonic_ns()
    for engine in engines:
        if engine.counters.replay_ready:
            engine.counters.replay_between(now_ns, now_ns + 1)  # as short as a window can be
