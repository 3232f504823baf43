"""How often a repeat is tried, within a run and over runs: from receipts, from commits, without a cluster."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.expand import expand
from orchestrator.gpus import KINDS
from orchestrator.host import Receipt
from orchestrator.ledger import Ledger
from orchestrator.plan import Block, plan
from orchestrator.pool import Lost
from orchestrator.spec import load_spec
from orchestrator.store import ResultStore
from orchestrator.tries import ATTEMPTS, LOSSES, LOST_HOST, Attempt, End, Tries, Work, take
from tests.small_sweep import write_spec


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return opened(tmp_path)


def opened(folder: Path, retry_failed: bool = False) -> Ledger:
    spec = load_spec(write_spec(folder))
    store = ResultStore.open(str(folder / "store"), create=True)
    return Ledger.open(spec, store, expand(spec, "simulated", "H100"), retry_failed)


@pytest.fixture
def block(ledger: Ledger) -> Block:
    """Two repeats."""
    return plan(ledger.repeats, KINDS["H100"]).blocks[0]


def attempt_at(work: Work) -> Attempt:
    return Attempt(work, {repeat.repeat_id: repeat for repeat in work.block.repeats})


def test_a_failed_repeat_is_tried_once_more_and_comes_last(block: Block) -> None:
    first, second = (repeat.repeat_id for repeat in block.repeats)
    attempt = attempt_at(Work.first(block))
    assert attempt.land(first, "planted") is False
    again, spent = attempt.rest(End.LOST)
    assert again and not spent
    assert [repeat.repeat_id for repeat in again.block.repeats] == [second, first]
    assert again.tries == {first: Tries(failed=1), second: Tries(lost=1)}
    attempt = attempt_at(again)
    assert attempt.land(first, "planted") is True
    assert attempt.land(second, None) is True
    assert attempt.rest(End.ENDED) == (None, {})


@pytest.mark.parametrize(
    ("end", "counts"),
    [
        (End.ENDED, (Tries(), Tries())),
        (End.BROKE, (Tries(failed=1), Tries())),
        (End.LOST, (Tries(lost=1), Tries())),
        (End.UNCLEAN, (Tries(), Tries())),
    ],
)
def test_what_was_not_reached_has_lost_no_attempt(tmp_path: Path, end: End, counts: tuple[Tries, Tries]) -> None:
    spec = load_spec(write_spec(tmp_path, sweep={"grid": {"model": ["Qwen2.5-0.5B"], "prompt_tokens": [32, 64, 128]}}))
    block = plan(expand(spec, "simulated", "H100"), KINDS["H100"]).blocks[0]
    first, second, third = (repeat.repeat_id for repeat in block.repeats)
    attempt = attempt_at(Work.first(block))
    attempt.land(first, None)
    again, spent = attempt.rest(end)
    assert again and not spent and (again.tries[second], again.tries[third]) == counts
    order = [repeat.repeat_id for repeat in again.block.repeats]
    assert order == ([third, second] if end in (End.BROKE, End.LOST) else [second, third])


@pytest.mark.parametrize("end", [End.ENDED, End.BROKE])
def test_a_block_of_which_nothing_succeeds_is_given_up_after_as_many_attempts(block: Block, end: End) -> None:
    work: Work | None = Work.first(block)
    for _ in range(ATTEMPTS - 1):
        assert work is not None
        work, spent = attempt_at(work).rest(end)
        assert not spent
    assert work is not None
    assert attempt_at(work).rest(end) == (None, {repeat.repeat_id: repeat for repeat in work.block.repeats})


def test_a_block_that_takes_every_host_with_it_is_given_up(block: Block) -> None:
    work: Work | None = Work.first(block)
    for _ in range(LOSSES - 1):
        assert work is not None
        work, spent = attempt_at(work).rest(End.LOST)
        assert not spent
    assert work is not None and work.barren == LOSSES - 1
    again, spent = attempt_at(work).rest(End.LOST)
    assert again is None and set(spent) == {repeat.repeat_id for repeat in block.repeats}


def test_success_in_between_forgets_barren_losses(block: Block) -> None:
    work: Work | None = Work.first(block)
    for _ in range(LOSSES - 1):
        assert work is not None
        work, _ = attempt_at(work).rest(End.LOST)
    assert work is not None
    attempt = attempt_at(work)
    attempt.land(work.block.repeats[0].repeat_id, None)
    again, spent = attempt.rest(End.LOST)
    assert (again is None) == bool(spent) and (again is None or again.barren == 0)


def lose(ledger: Ledger, block: Block, reason: str) -> None:
    """One more attempt that came to nothing, recorded by the driver; the driver is then killed."""
    assert ledger.lose(Lost(block.repeats[0], block, reason, "log", final=False))


def test_a_sweep_killed_between_a_failure_and_its_retry_goes_on_with_the_retry(
    tmp_path: Path, ledger: Ledger, block: Block
) -> None:
    repeat = block.repeats[0]
    lose(ledger, block, "OSError: no room")
    resumed = opened(tmp_path)
    assert repeat in resumed.remaining and resumed.counts() == {"failed": 2} and resumed.settled == 0
    assert resumed.assignment(block).generations[repeat.repeat_id] == 2
    lose(resumed, block, "OSError: no room")
    settled = opened(tmp_path)
    assert repeat not in settled.remaining and settled.counts() == {"failed": 2} and settled.settled == 2
    assert repeat in opened(tmp_path, retry_failed=True).remaining


def test_what_one_host_saw_goes_to_the_next_with_its_block(ledger: Ledger, block: Block) -> None:
    first, second = block.repeats
    assert not ledger.assignment(block).latencies_s
    ledger.land(Receipt(first.repeat_id, True, "here", (), {"one": 1.5}), final=True)
    ledger.land(Receipt(second.repeat_id, True, "there", (), {"one": 2.0, "other": 0.5}), final=False)
    assert ledger.assignment(block).latencies_s == {"one": 2.0, "other": 0.5}


def test_a_fixed_number_of_boots_goes_with_each_block(tmp_path: Path) -> None:
    cells = [
        {"model": "Qwen2.5-0.5B", "prompt_tokens": 64},
        {"model": "Qwen2.5-0.5B", "prompt_tokens": 128, "repeats": 4},
    ]
    for stopping, planned in (("fixed", {64: 2, 128: 4}), ("open", {})):
        path = write_spec(tmp_path, stopping=stopping, repeats=2, sweep={"include": cells})
        spec, store = load_spec(path), ResultStore.open(str(tmp_path / stopping), create=True)
        repeats = expand(spec, "simulated", "H100")
        found = Ledger.open(spec, store, repeats, retry_failed=False)
        (block, *_) = plan(repeats, KINDS["H100"]).blocks
        context = found.assignment(block).context
        prompts = {repeat.repeat_id: repeat.cell.workload.prompt_tokens for repeat in block.repeats}
        assert {prompts[repeat_id]: boots for repeat_id, boots in context.planned_boots.items()} == planned


def test_lost_hosts_are_counted_apart_and_over_runs(tmp_path: Path, block: Block) -> None:
    repeat = block.repeats[0]
    for _ in range(LOSSES):
        resumed = opened(tmp_path)
        assert repeat in resumed.remaining
        lose(resumed, block, f"{LOST_HOST}its node is gone")
    assert repeat not in opened(tmp_path).remaining


def test_what_a_host_committed_before_it_was_lost_counts_and_is_not_measured_again(
    ledger: Ledger, block: Block
) -> None:
    """Its receipt never came: the driver finds the commit where it wants to record the loss."""
    from orchestrator.runner import BlockContext, RepeatLog, finish

    repeat = block.repeats[0]
    context = BlockContext("small", "sha", {repeat.trial_id(arm): "does not matter" for arm in repeat.arms})
    done = finish(RepeatLog.start(repeat), block, context)
    assert ledger.store.write_repeat("small", repeat.repeat_id, done.attempt_id, done.frames, 1)
    assert ledger.lose(Lost(repeat, block, f"{LOST_HOST}killed", "", final=False)) == ()
    assert ledger.counts() == {"skipped": 2}
    assert repeat not in ledger.remaining and repeat not in ledger.assignment(block).block.repeats


def test_boots_of_one_model_go_to_different_hosts(block: Block) -> None:
    blocks = [
        replace(block, model=model, block_id=f"{model}{index}") for model in ("large", "small") for index in range(3)
    ]
    waiting = deque(Work.first(each) for each in blocks)
    seen: tuple[Counter[str], ...] = (Counter(), Counter())
    given = []
    while waiting:
        host = seen[len(given) % 2]
        work = take(waiting, host)
        host[work.block.model] += 1
        given.append(work.block.block_id)
    assert given == ["large0", "large1", "small0", "small1", "large2", "small2"]
    assert seen == ({"large": 2, "small": 1}, {"large": 1, "small": 2})
