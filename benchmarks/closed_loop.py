"""What the closed loop itself costs: `python -m benchmarks.closed_loop [SECONDS]`, the target answering at once.

One line a number of clients: tokens a second, the share of one core that took, and microseconds of processor time a
token. Every token is an arrival of its own, as with an engine that streams; an engine step of 256 clients that takes
10 ms leaves 39 microseconds a token.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator

from benchmarks.rate import Rate, machine
from workloads.closed_loop import ClosedLoop, Load, summarise
from workloads.prompts import PromptPool

CLIENTS = (1, 64, 256, 1024)
PROMPT_TOKENS, OUTPUT_TOKENS = 128, 128
PROMPTS = 20_000


class Instant:
    """One token each turn of the event loop: no engine, only the hand-over from one task to the next."""

    async def generate(self, prompt: list[int], output_tokens: int, request_id: str) -> AsyncIterator[int]:
        for _ in range(output_tokens):
            await asyncio.sleep(0)
            yield 1

    def tokens(self, arrival: int) -> int:
        return arrival


async def measure(clients: int, seconds: float) -> tuple[float, float]:
    """Tokens a second, and processor seconds a second, over `seconds` in which every client is under way."""
    load = Load(clients, PROMPT_TOKENS, OUTPUT_TOKENS, seed=clients)
    loop = ClosedLoop(Instant(), load, PromptPool(PROMPTS, PROMPT_TOKENS, 32_000, load.seed))
    async with loop.running(time.monotonic_ns()):
        await loop.ramped.wait()
        cpu, start_ns = time.process_time(), time.monotonic_ns()
        await asyncio.sleep(seconds)
        cpu, end_ns = time.process_time() - cpu, time.monotonic_ns()
    seen = summarise(loop, start_ns, end_ns)
    elapsed_s = (end_ns - start_ns) / 1e9
    return seen.output_tokens / elapsed_s, cpu / elapsed_s


def rates(clients: int = 256, seconds: float = 2.0) -> list[Rate]:
    rate, cores = asyncio.run(measure(clients, seconds))
    note = f"{clients} clients, {1e6 * cores / rate:.1f} us of processor time a token, the target answering at once"
    return [Rate("closed loop", rate * seconds, "tokens", seconds, cores * seconds, note)]


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 2.0
    for clients in CLIENTS:
        rate, cores = asyncio.run(measure(clients, seconds))
        token_us = 1e6 * cores / rate
        print(f"{clients:5} clients: {rate:9,.0f} tokens/s on {cores:4.0%} of a core, {token_us:5.2f} us a token")
    print(f"{OUTPUT_TOKENS} output tokens a request, one arrival a token; {machine()}")


if __name__ == "__main__":
    main()
