"""The closed loop against targets that answer in known ways, and its sums against counts made beside it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest

from orchestrator.engine_main import requests_of, token_bins
from workloads.closed_loop import (
    FAILURE_PAUSE_S,
    ClosedLoop,
    Load,
    RequestRecord,
    first_lengths,
    first_steps,
    summarise,
)
from workloads.prompts import PromptPool

VOCABULARY = 1024
SECOND_NS = 1_000_000_000


@dataclass
class FakeTarget:
    """Answers with one token at a time, `burst` at once where asked, after `wait(client, sequence, token)`."""

    wait: Callable[[int, int, int], Awaitable[object]]
    burst: int = 1
    in_flight: int = 0
    sent: int = 0
    tokens_out: int = 0
    prompts: list[tuple[int, ...]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)

    async def generate(self, prompt: list[int], output_tokens: int, request_id: str) -> AsyncIterator[int]:
        self.prompts.append(tuple(prompt))
        self.ids.append(request_id)
        _, client, sequence = map(int, request_id.split("-"))
        self.in_flight += 1
        self.sent += 1
        try:
            left = output_tokens
            while left:
                await self.wait(client, sequence, output_tokens - left)
                arrived = min(self.burst, left)
                left -= arrived
                self.tokens_out += arrived
                yield arrived
        finally:
            self.in_flight -= 1

    def tokens(self, arrival: int) -> int:
        return arrival


async def at_once(*_: int) -> None:
    await asyncio.sleep(0)


async def never(*_: int) -> None:
    await asyncio.Event().wait()


async def first_only(client: int, sequence: int, token: int) -> None:
    await (at_once() if (sequence, token) == (0, 0) else never())


def loop_of(target: object, clients: int, output_tokens: int = 8, **load: object) -> ClosedLoop:
    wanted = Load(clients, prompt_tokens=16, output_tokens=output_tokens, seed=5, **load)  # type: ignore[arg-type]
    return ClosedLoop(target, wanted, PromptPool(clients * 4, 16, VOCABULARY, 5))  # type: ignore[arg-type]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - every turn of the event loop is looked at
        await asyncio.sleep(0)


def run(loop: ClosedLoop, condition: Callable[[], bool]) -> None:
    """Run the clients until `condition` holds."""

    async def main() -> None:
        async with loop.running(time.monotonic_ns()):
            await until(condition)

    asyncio.run(main())


@pytest.mark.parametrize(("clients", "burst"), [(1, 1), (7, 1), (7, 3), (1024, 4)])
def test_every_token_is_credited_once(clients: int, burst: int) -> None:
    target = FakeTarget(at_once, burst)
    loop = loop_of(target, clients)
    began_ns = time.monotonic_ns()
    run(loop, lambda: target.sent >= 6 * clients)
    seen = summarise(loop, began_ns - 1, time.monotonic_ns())
    assert seen.output_tokens == target.tokens_out == sum(record.received for record in loop.requests)
    assert seen.requests_completed == sum(record.received == record.asked for record in loop.requests)
    assert seen.prompt_tokens == 16 * sum(record.received > 0 for record in loop.requests)
    assert seen.requests_failed == 0 and not loop.errors
    assert Counter(record.status for record in loop.requests)["aborted"] == clients
    assert len(set(target.ids)) == len(target.ids) == len(set(target.prompts))
    assert loop.prompts.late == target.sent - 4 * clients


@pytest.mark.parametrize("clients", [1, 7, 1024])
def test_the_next_request_takes_the_place_of_the_last_one(clients: int) -> None:
    target = FakeTarget(at_once)
    loop = loop_of(target, clients)
    seen: list[int] = []

    async def main() -> None:
        async with loop.running(time.monotonic_ns()):
            await loop.ramped.wait()
            while target.sent < 5 * clients:
                seen.append(target.in_flight)
                await asyncio.sleep(0)

    asyncio.run(main())
    assert set(seen) == {clients}
    for client in range(clients):
        mine = [record for record in loop.requests if record.client == client]
        assert [record.sequence for record in mine] == list(range(len(mine)))
        ends = [record.ended_ns for record in mine[:-1]]
        assert all(end <= record.sent_ns for end, record in zip(ends, mine[1:], strict=True))


def test_first_requests_have_residual_lengths_and_later_ones_all_of_it() -> None:
    target = FakeTarget(at_once)
    loop = loop_of(target, 64, output_tokens=32)
    run(loop, lambda: target.sent >= 4 * 64)
    firsts = {record.client: record.asked for record in loop.requests if record.sequence == 0}
    assert [firsts[client] for client in range(64)] == first_lengths(loop.load).tolist()
    assert {record.asked for record in loop.requests if record.sequence > 0} == {32}


def test_residual_lengths_are_uniform_and_seeded() -> None:
    load = Load(clients=32_000, prompt_tokens=1, output_tokens=32, seed=9)
    lengths = first_lengths(load)
    counts = np.bincount(lengths, minlength=33)
    assert counts[0] == 0 and counts.size == 33
    # Chi-square with 31 degrees of freedom is above 61 once in a thousand seeds; this seed is fixed.
    assert ((counts[1:] - 1000) ** 2 / 1000).sum() < 61
    assert (first_lengths(load) == lengths).all()
    assert (first_lengths(Load(32_000, 1, 32, seed=10)) != lengths).any()


def test_without_residuals_first_requests_ask_for_all_of_it() -> None:
    assert first_lengths(Load(4, 16, 4096, seed=1, residual=False)).tolist() == [4096] * 4
    assert first_lengths(Load(3, 16, 1, seed=1)).tolist() == [1, 1, 1]


def test_clients_start_at_the_time_told_and_in_the_order_of_their_lengths() -> None:
    loop = loop_of(FakeTarget(never), 300)
    start_ns = time.monotonic_ns() + 10_000_000

    async def main() -> None:
        async with loop.running(start_ns):
            await until(lambda: len(loop.requests) == 300)

    asyncio.run(main())
    assert [record.client for record in loop.requests] == list(range(300))
    assert all(record.sent_ns >= start_ns for record in loop.requests)


@pytest.mark.parametrize(
    ("prompt", "step_tokens", "steps"),
    [
        (100, None, [0, 0, 0, 0, 0, 0]),
        (100, 1000, [0, 0, 0, 0, 0, 0]),
        # by hand: 100 100 | 100 98 | 2 100 95 | 5, with 0, 2, 3 and 5 that decode
        (100, 200, [0, 0, 1, 2, 2, 3]),
        # 200 | 100 100 | 199 | 1 198 | 102 96 | 197 | 7 190 | 110 86 | 195 | 19
        (300, 200, [1, 3, 4, 6, 7, 9]),
    ],
)
def test_the_steps_that_give_first_tokens(prompt: int, step_tokens: int | None, steps: list[int]) -> None:
    load = Load(6, prompt, 64, seed=1, step_tokens=step_tokens)
    assert first_steps(load).tolist() == steps


@pytest.mark.parametrize("prompt", [64, 512, 2048])
def test_first_requests_end_evenly_over_the_cycle_after_the_last_prompt(prompt: int) -> None:
    """In steps from the last prompt's: uniform on 1..output_tokens, whoever was prefilled first."""
    load = Load(256, prompt, 128, seed=3, step_tokens=8192)
    lengths, prefilled = first_lengths(load), first_steps(load)
    ends = prefilled + lengths - prefilled[-1]
    assert lengths.min() >= 1 and lengths.max() <= 128
    assert (np.diff(ends) >= 0).all()
    even = (np.arange(256) + 0.5) / 256
    # Kolmogorov's distance of 256 even draws is above 0.102 once in a hundred seeds; this seed is fixed.
    assert np.abs(np.sort(ends) / 128 - even).max() < 0.102


def test_where_prompts_take_longer_than_all_output_first_requests_ask_for_all_of_it() -> None:
    """Sixteen tokens of output while 64 steps of prompts go by: the queue keeps the clients out of step."""
    load = Load(256, 2048, 16, seed=3, step_tokens=8192)
    early = first_steps(load) <= first_steps(load)[-1] - 16
    assert early.sum() > 150
    assert (first_lengths(load)[early] == 16).all()


def test_ramped_means_that_every_client_has_a_token() -> None:
    gates = [asyncio.Event() for _ in range(3)]

    async def gated(client: int, sequence: int, token: int) -> None:
        await (gates[client].wait() if token == 0 else never())

    loop = loop_of(FakeTarget(gated), 3, residual=False)

    async def main() -> None:
        async with loop.running(time.monotonic_ns()):
            for client in (2, 0, 1):
                await until(lambda: len(loop.requests) == 3)
                assert not loop.ramped.is_set()
                gates[client].set()
                await until(lambda client=client: loop.requests[client].received > 0)  # type: ignore[misc]
            await loop.ramped.wait()

    asyncio.run(main())
    assert {record.first_token_ns > 0 for record in loop.requests} == {True}


def test_what_is_in_flight_at_the_end_is_aborted() -> None:
    target = FakeTarget(first_only)
    loop = loop_of(target, 20, residual=False)
    tasks_left: set[asyncio.Task[None]] = set()

    async def main() -> None:
        async with loop.running(time.monotonic_ns()):
            await loop.ramped.wait()
            assert target.in_flight == 20
        tasks_left.update(asyncio.all_tasks() - {asyncio.current_task()})  # type: ignore[arg-type]

    asyncio.run(main())
    assert target.in_flight == 0 and not tasks_left
    assert Counter(record.status for record in loop.requests) == {"aborted": 20}
    assert {record.received for record in loop.requests} == {1}


class Failing:
    """Fails in the way asked, after `after` tokens."""

    def __init__(self, how: str, after: int) -> None:
        self.how, self.after = how, after

    async def generate(self, prompt: list[int], output_tokens: int, request_id: str) -> AsyncIterator[int]:
        for _ in range(self.after):
            await asyncio.sleep(0)
            yield 1
        if self.how == "raises":
            raise ConnectionResetError("gone")

    def tokens(self, arrival: int) -> int:
        return arrival


@pytest.mark.parametrize(
    ("how", "after", "said"),
    [
        ("raises", 0, "ConnectionResetError: gone"),
        ("raises", 3, "ConnectionResetError: gone"),
        ("stops", 3, "3 tokens came of 8"),
    ],
)
def test_a_failed_request_is_a_row_and_the_client_pauses(how: str, after: int, said: str) -> None:
    loop = loop_of(Failing(how, after), 2, residual=False)
    began_ns = time.monotonic_ns()
    run(loop, lambda: len(loop.requests) >= 6)
    now = time.monotonic_ns()
    failed = [record for record in loop.requests if record.status == "failed"]
    assert len(failed) >= 4 and set(loop.errors) == {said}
    for client in (0, 1):
        mine = [record for record in loop.requests if record.client == client]
        for last, following in pairwise(mine):
            assert following.sent_ns - last.ended_ns >= 0.99 * FAILURE_PAUSE_S * 1e9
    seen = summarise(loop, began_ns - 1, now)
    assert (seen.requests_failed, seen.requests_completed) == (len(failed), 0)
    assert seen.output_tokens == sum(record.received for record in loop.requests)
    rows = requests_of(loop, began_ns - 1, now)
    assert rows.filter(rows["status"] == "failed").height == len(failed)
    assert rows["first_token_ns"].null_count() == (
        rows.height if after == 0 else rows.filter(rows["output_tokens"] == 0).height
    )


def test_a_window_is_open_on_the_left_and_closed_on_the_right() -> None:
    """By hand: a window from 10 s to 12 s, with one request at each kind of place."""
    loop = loop_of(FakeTarget(never), 4)
    s = SECOND_NS
    loop.requests = [
        RequestRecord(0, 0, 8, 8 * s, 8, 9 * s, 10 * s, 10 * s, "ok"),  # ended on the left edge: before it
        RequestRecord(0, 1, 8, 10 * s, 8, 10 * s + 1, 12 * s, 12 * s, "ok"),  # all of it, to the right edge
        RequestRecord(1, 0, 8, 9 * s, 5, 10 * s, 12 * s),  # prefilled before, still running
        RequestRecord(2, 0, 8, 9 * s, 0, 0, 0, 11 * s, "failed"),  # sent before, failed inside
        RequestRecord(3, 0, 8, 12 * s, 1, 12 * s + 1, 12 * s + 1),  # sent at the end
    ]  # fmt: skip
    loop.token_times_ns = [9 * s, 10 * s, 10 * s + 1, 11 * s, 12 * s, 12 * s + 1]
    loop.token_counts = [1, 2, 4, 8, 16, 32]
    loop.lags_s = [(9 * s, 5.0), (11 * s, 0.25), (13 * s, 7.0)]
    seen = summarise(loop, 10 * s, 12 * s)
    assert seen.output_tokens == 4 + 8 + 16
    assert seen.prompt_tokens == 16  # only the second request's first token is inside
    assert (seen.requests_completed, seen.requests_failed) == (1, 1)
    assert seen.in_flight_mean == (2 + 2 + 1) / 2
    assert seen.loop_lag_p99_s == 0.25
    rows = requests_of(loop, 10 * s, 12 * s)
    assert rows["client"].to_list() == [0, 1, 2, 3]
    assert rows["status"].to_list() == ["ok", "aborted", "failed", "aborted"]


def test_bins_hold_every_token_of_the_window() -> None:
    loop = loop_of(FakeTarget(never), 1)
    loop.token_times_ns = [SECOND_NS + index * 100_000_000 + 1 for index in range(20)]
    loop.token_counts = [1] * 20
    assert token_bins(loop, SECOND_NS, 3 * SECOND_NS) == [5, 5, 5, 5]
    assert token_bins(loop, SECOND_NS, SECOND_NS + 1_200_000_000) == [5, 5]  # a short last bin is left out
