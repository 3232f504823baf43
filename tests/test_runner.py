"""A block without Ray or GPU: a deployment that says what the test tells it to, and keeps what it was asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import polars as pl
import pytest

from orchestrator.errors import BootError, EngineCrashed, MeasurementError, MpsFault, WindowError
from orchestrator.gpus import GpuKind
from orchestrator.observation import Attachment, BootFacts, EngineFacts, GpuFacts, Observation, WindowOrder
from orchestrator.order import rounds
from orchestrator.pace import Pace, recorded_latencies_s
from orchestrator.plan import Block, plan
from orchestrator.records import REQUESTS, SAMPLES, TABLES
from orchestrator.runner import (
    LATENCIES_A_WINDOW,
    LATENCIES_TO_SETTLE,
    LATENCIES_TO_SETTLE_UNPACED,
    BlockContext,
    DoneRepeat,
    run_block,
)
from orchestrator.store import ResultStore
from orchestrator.trial import (
    PILOT_MOST_S,
    PILOT_SHARE,
    Arm,
    Cell,
    Measurement,
    Mps,
    Repeat,
    Single,
    TimeSliced,
    Workload,
)

SINGLE, SLICED, MPS = Arm("single", Single()), Arm("sliced2", TimeSliced(2)), Arm("mps2", Mps(2))
ARMS = (SINGLE, SLICED, MPS)
CLIENTS = 8
IDS = ("trial_id", "attempt_id", "window_index")
NO_REQUESTS = pl.DataFrame(schema={name: kind for name, kind in REQUESTS.items() if name not in IDS})
NO_SAMPLES = pl.DataFrame(schema={name: kind for name, kind in SAMPLES.items() if name not in IDS})


@dataclass
class Script:
    """tokens_per_s: of the nth window of an arm, pilots not counted (a pilot is number -1). faults: by arm and the
    number of the order that it gets in a life of the engines, pilots counted; of a whole boot under number -1."""

    tokens_per_s: Callable[[str, int], float] = lambda arm, number: 1000.0
    faults: Mapping[tuple[str, int], MeasurementError] = field(default_factory=dict)
    uncertified: Callable[[str, int], bool] = lambda arm, number: False
    orders: list[WindowOrder] = field(default_factory=list)
    boots: list[tuple[str, ...]] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    closed: int = 0

    @contextmanager
    def open(self, block: Block, arms: Sequence[Arm]) -> Iterator[ScriptedDeployment]:
        self.boots.append(tuple(arm.name for arm in arms))
        for arm in arms:
            if fault := self.faults.get((arm.name, -1)):
                raise fault
        try:
            yield ScriptedDeployment(self, arms, len(self.boots))
        finally:
            self.closed += 1

    def windows(self) -> list[str]:
        return [order.arm.name for order in self.orders if not order.pilot]


class ScriptedDeployment:
    """Implements observation.Deployment."""

    def __init__(self, script: Script, arms: Sequence[Arm], boot: int) -> None:
        self.script = script
        self.asked: Counter[str] = Counter()
        self.windows: Counter[str] = Counter()
        self.boots = {
            arm.name: BootFacts(f"{arm.name}-{boot}", 1.5, "Toy", "GPU-0", "here", 2**20, 100, CLIENTS, "none", {}, {})
            for arm in arms
        }

    def keep_only(self, arm: str) -> None:
        self.script.kept.append(arm)

    def measure(self, order: WindowOrder) -> Observation:
        name = order.arm.name
        self.script.orders.append(order)
        self.asked[name] += 1
        if fault := self.script.faults.get((name, self.asked[name] - 1)):
            raise fault
        number = -1 if order.pilot else self.windows[name]
        self.windows[name] += not order.pilot
        tokens = round(self.script.tokens_per_s(name, number) * order.window_s)
        engines = order.arm.engines
        failed = int(self.script.uncertified(name, number))
        share = order.concurrency // engines
        return Observation(
            start_ns=10**9 * len(self.script.orders),
            duration_s=order.window_s,
            warmup_s=order.warmup_s,
            output_tokens=tokens,
            prompt_tokens=4 * tokens,
            requests=NO_REQUESTS,
            samples=NO_SAMPLES,
            engines=tuple(
                EngineFacts(i, share, float(share), 100, failed, waiting_mean=0.0, preemptions=0)
                for i in range(engines)
            ),
            gpu=GpuFacts(),
            attachment=Attachment(method="simulated"),
        )


ROOMY, TIGHT = 141 * 10**9, 12 * 2**30  # Qwen2.5-1.5B: all three arms together, or each by itself


def repeat_of(prompt=64, number=0, arms=ARMS, kind="mixed", **look) -> Repeat:
    measurement = Measurement(**{"min_windows": 3, "max_windows": 6, "window_s": 4.0, "warmup_s": 2.0} | look)
    work = Workload(kind, prompt, 1 if kind == "prefill" else 16)
    return Repeat("simulated", Cell("H200", "Qwen2.5-1.5B", work, CLIENTS), tuple(arms), {}, measurement, number, 7)


def run(script: Script, *repeats: Repeat, memory_bytes=ROOMY, skips=None, pace=None) -> list[DoneRepeat]:
    gpu = GpuKind("H200", memory_bytes, 132, 1980, 1e15, 4e12, 50 * 2**20, 700, 75)
    (block,) = plan(repeats, gpu).blocks
    return list(run_block(block, script.open, BlockContext("toy", "sha", skips or {}), pace))


def outcomes(done: DoneRepeat) -> dict[str, str]:
    return {trial.arm: trial.outcome for trial in done.summaries}


def windows(done: DoneRepeat) -> pl.DataFrame:
    arms = done.frames["trials"].select("trial_id", "arm")
    return done.frames["windows"].join(arms, on="trial_id").sort("order_index")


def test_every_round_takes_each_arm_once_in_the_seeded_order():
    script = Script()
    repeat = repeat_of(min_windows=6)
    (done,) = run(script, repeat)
    drawn = rounds(["single", "sliced2", "mps2"], repeat.seed)
    expected = [arm for _ in range(6) for arm in next(drawn)]
    assert script.windows() == expected
    rows = windows(done)
    assert rows["arm"].to_list() == expected
    assert rows["order_index"].to_list() == list(range(18))
    assert rows["round_index"].to_list() == [index // 3 for index in range(18)]
    assert rows["previous_arm"].to_list() == [None, *expected[:-1]]
    assert rows.group_by("arm").agg("window_index").sort("arm")["window_index"].to_list() == [list(range(6))] * 3
    assert script.boots == [("single", "sliced2", "mps2")] and script.closed == 1
    assert outcomes(done) == dict.fromkeys(["single", "sliced2", "mps2"], "ok")
    # at once by the clock, but virtual windows last as long as they say: six of 2 + 4 s
    assert done.frames["trials"]["measuring_s"].to_list() == pytest.approx([36.0] * 3)


def test_the_rows_of_a_repeat_are_what_a_store_takes(tmp_path):
    store = ResultStore.open(str(tmp_path), create=True)
    for done in run(Script(), repeat_of(64), repeat_of(128)):
        assert set(done.frames) == set(TABLES)
        assert store.write_repeat("toy", done.repeat.repeat_id, done.attempt_id, done.frames, 1)
    trials = store.read("trials")
    assert trials.height == 6 and (trials["outcome"] == "ok").all() and (trials["residency"] == "resident").all()
    assert trials["resident_arms"].to_list() == [["single", "sliced2", "mps2"]] * 6
    assert store.read("windows")["certified"].all()


def test_windows_never_repeat_a_seed_and_a_second_run_has_the_same_ones():
    first, second = Script(), Script()
    run(first, repeat_of(64), repeat_of(128))
    run(second, repeat_of(64), repeat_of(128))
    seeds = [order.seed for order in first.orders]
    assert len(set(seeds)) == len(seeds)
    assert seeds == [order.seed for order in second.orders]


@pytest.mark.parametrize(
    ("kind", "slowest_tokens_per_s", "window_s"),
    [
        # 8 clients of 16 tokens at 16 tokens/s: a request takes 8 s, and a window must hold three
        ("mixed", 16.0, LATENCIES_A_WINDOW * 8.0),
        ("mixed", 1000.0, 4.0),
        # one output token each: 8 clients at 2.5 a second
        ("prefill", 2.5, LATENCIES_A_WINDOW * 3.2),
        ("decode", 1.0, 4.0),
    ],
)
def test_pilots_make_windows_long_enough_for_the_slowest_arm(kind, slowest_tokens_per_s, window_s):
    script = Script(lambda arm, number: slowest_tokens_per_s if arm == "mps2" else 2000.0)
    run(script, repeat_of(kind=kind))
    pilots = [order for order in script.orders if order.pilot]
    assert [order.arm for order in pilots] == list(ARMS)
    assert {order.window_s for order in pilots} == {4.0 * PILOT_SHARE} == {repeat_of().measurement.pilot_s}
    lengths = {order.window_s for order in script.orders if not order.pilot}
    assert [pytest.approx(window_s, rel=0.02)] == list(lengths)
    latency_s = window_s / LATENCIES_A_WINDOW if window_s > 4.0 else 0.0
    assert {order.warmup_s for order in script.orders if not order.pilot} == {2.0}
    if window_s > 4.0:
        settling = {order.settle_s for order in script.orders if not order.pilot}
        assert [pytest.approx(LATENCIES_TO_SETTLE * latency_s, rel=0.02)] == list(settling)
    assert {(order.warmup_s, order.settle_s) for order in pilots} == {(0.0, 0.0)}


@pytest.mark.parametrize(
    ("kind", "latencies"),
    [
        ("mixed", LATENCIES_TO_SETTLE),
        ("prefill", LATENCIES_TO_SETTLE),
        ("text", LATENCIES_TO_SETTLE_UNPACED),
        ("decode", 0.0),
    ],
)
def test_clients_settle_for_longer_where_the_frontend_sets_the_pace(kind, latencies):
    tokens_per_s = CLIENTS * (1 if kind == "prefill" else 16) / 2.0  # a latency of two seconds
    script = Script(lambda arm, number: tokens_per_s)
    run(script, repeat_of(kind=kind))
    for order in script.orders:
        assert order.settle_s == pytest.approx(0.0 if order.pilot else latencies * 2.0, rel=0.05)


def test_a_long_window_has_no_longer_pilot():
    script = Script()
    run(script, repeat_of(window_s=60.0))
    assert {order.window_s for order in script.orders if order.pilot} == {PILOT_MOST_S}


def ragged(*noisy: str) -> Callable[[str, int], float]:
    """Rates that jump by 20 % from window to window in the arms named, and are constant in the others."""
    return lambda arm, number: 1000.0 * (1.2 if arm in noisy and number % 2 else 1.0)


@pytest.mark.parametrize(
    ("noisy", "rounds_taken"), [((), 3), (("mps2",), 6), (("sliced2",), 6), (("single",), 6)], ids=str
)
def test_rounds_are_added_until_every_contrast_is_narrow_or_the_budget_is_spent(noisy, rounds_taken):
    script = Script(ragged(*noisy))
    run(script, repeat_of())
    assert Counter(script.windows()) == dict.fromkeys(["single", "sliced2", "mps2"], rounds_taken)


def test_noise_that_both_arms_share_is_no_noise_of_their_ratio():
    script = Script(ragged("single", "sliced2", "mps2"))
    run(script, repeat_of())
    assert len(script.windows()) == 3 * 3


def test_a_prefill_workload_is_judged_by_its_prompt_tokens():
    # Prompt tokens are four times the output tokens here; a rate of zero output tokens would be no rate at all.
    (done,) = run(Script(), repeat_of(kind="prefill"))
    assert {trial.tokens_per_s for trial in done.summaries} == {4000.0}
    (done,) = run(Script(), repeat_of(kind="prefill-replay"))
    assert {trial.tokens_per_s for trial in done.summaries} == {4000.0}
    (done,) = run(Script(), repeat_of())
    assert {trial.tokens_per_s for trial in done.summaries} == {1000.0}


@pytest.mark.parametrize("kind", ["prefill-replay", "decode-replay"])
def test_a_replayed_step_needs_no_look_and_no_longer_windows(kind):
    """No request has to end in a window of it; arms of one engine are profiled where that is asked for."""
    script = Script(lambda arm, number: 1.0)
    run(script, repeat_of(kind=kind, profile_steps=3))
    assert not any(order.pilot for order in script.orders)
    assert {(order.window_s, order.warmup_s) for order in script.orders} == {(4.0, 2.0)}
    assert {(order.arm.name, order.profile_steps) for order in script.orders} == {
        ("single", 3),
        ("sliced2", 0),
        ("mps2", 0),
    }


def test_a_window_that_is_not_certified_does_not_count_towards_enough():
    script = Script(uncertified=lambda arm, number: arm == "mps2" and number == 1)
    (done,) = run(script, repeat_of(min_windows=3, max_windows=6))
    # constant rates need three rounds, and the second of them does not count
    assert Counter(script.windows()) == dict.fromkeys(["single", "sliced2", "mps2"], 4)
    flagged = windows(done).filter(~pl.col("certified"))
    assert flagged.select("arm", "window_index").rows() == [("mps2", 1)]
    assert flagged["certificate_failures"].to_list() == [["failed_requests: 2 requests failed"]]


def test_the_uncertified_rates_themselves_are_left_out():
    wild = Script(
        lambda arm, number: 5000.0 if (arm, number) == ("mps2", 0) else 1000.0,
        uncertified=lambda arm, number: arm == "mps2" and number == 0,
    )
    run(wild, repeat_of())
    assert Counter(wild.windows())["mps2"] == 4


def test_a_window_error_fails_its_trial_and_the_others_go_on():
    # mps2's third order is its second window; afterwards its ragged rates must not keep the others waiting
    script = Script(ragged("mps2"), faults={("mps2", 2): WindowError("clients starved", "the log")})
    (done, after) = run(script, repeat_of(64), repeat_of(128))
    assert outcomes(done) == {"single": "ok", "sliced2": "ok", "mps2": "failed"}
    assert outcomes(after) == dict.fromkeys(["single", "sliced2", "mps2"], "ok")
    trial = done.frames["trials"].filter(arm="mps2").row(0, named=True)
    assert (trial["reason"], trial["log_tail"]) == ("WindowError: clients starved", "the log")
    assert {trial.arm: trial.windows for trial in done.summaries} == {"single": 3, "sliced2": 3, "mps2": 1}
    asked = [order.arm.name for order in script.orders if not order.pilot][: 3 + 3 + 2]
    failed_at = [index for index, arm in enumerate(asked) if arm == "mps2"][1]
    follower = windows(done).row(failed_at, named=True)  # the failed window has no row
    assert follower["previous_arm"] == "mps2"


def test_a_window_error_in_a_pilot_leaves_the_arm_out_of_the_rounds():
    script = Script(faults={("sliced2", 0): WindowError("starved")})
    (done,) = run(script, repeat_of())
    assert Counter(script.windows()) == {"single": 3, "mps2": 3}
    assert outcomes(done) == {"single": "ok", "sliced2": "failed", "mps2": "ok"}


def test_without_its_baseline_a_repeat_takes_the_fewest_windows():
    script = Script(ragged("mps2", "sliced2"), faults={("single", 1): WindowError("starved")})
    (done,) = run(script, repeat_of())
    assert Counter(script.windows()) == {"single": 1, "sliced2": 3, "mps2": 3}
    assert outcomes(done) == {"single": "failed", "sliced2": "ok", "mps2": "ok"}


@pytest.mark.parametrize("fault", [EngineCrashed("died", "last words"), MpsFault("FAULT", "last words")], ids=repr)
def test_a_lost_deployment_ends_the_block_and_leaves_the_rest(fault):
    # per repeat a pilot and three windows: order 6 is in the second repeat
    script = Script(faults={("mps2", 6): fault})
    done = run(script, repeat_of(64), repeat_of(128), repeat_of(256))
    assert [item.repeat.cell.workload.prompt_tokens for item in done] == [64, 128]
    assert set(outcomes(done[0]).values()) == {"ok"} and set(outcomes(done[1]).values()) == {"failed"}
    trials = done[1].frames["trials"]
    assert set(trials["reason"]) == {f"{type(fault).__name__}: {fault}"} and set(trials["log_tail"]) == {"last words"}
    assert script.closed == 1


def test_engines_that_do_not_boot_fail_the_first_repeat_only():
    script = Script(faults={("mps2", -1): BootError("out of memory", "CUDA out of memory")})
    (done,) = run(script, repeat_of(64), repeat_of(128))
    trials = done.frames["trials"]
    assert set(trials["reason"]) == {"BootError: out of memory"} and trials["boot_id"].null_count() == 3
    assert done.frames["windows"].is_empty()


def test_what_is_no_fault_of_the_measurement_is_a_bug_and_propagates():
    def broken(arm: str, number: int) -> float:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(Script(broken), repeat_of())


def test_alone_one_arm_after_another_is_booted_and_measured():
    script = Script()
    done = run(script, repeat_of(64), repeat_of(128), memory_bytes=TIGHT)
    assert script.boots == [("single",), ("sliced2",), ("mps2",)] and script.closed == 3
    assert script.windows() == ["single"] * 6 + ["sliced2"] * 6 + ["mps2"] * 6
    for item in done:
        assert set(outcomes(item).values()) == {"ok"}
        trials = item.frames["trials"]
        assert set(trials["residency"]) == {"alone"}
        assert trials["resident_arms"].to_list() == [["single"], ["sliced2"], ["mps2"]]
        assert trials["boot_id"].to_list() == ["single-1", "sliced2-2", "mps2-3"]


def test_alone_an_arm_s_own_scatter_decides_how_long_it_is_looked_at():
    script = Script(ragged("sliced2"))
    run(script, repeat_of(), memory_bytes=TIGHT)
    assert Counter(script.windows()) == {"single": 3, "sliced2": 6, "mps2": 3}


def test_alone_a_lost_arm_leaves_the_others_alone():
    script = Script(faults={("sliced2", 6): EngineCrashed("died")})
    first, second = run(script, repeat_of(64), repeat_of(128), memory_bytes=TIGHT)
    assert outcomes(first) == dict.fromkeys(["single", "sliced2", "mps2"], "ok")
    assert outcomes(second) == {"single": "ok", "sliced2": "failed", "mps2": "ok"}
    assert script.boots == [("single",), ("sliced2",), ("mps2",)]


def test_alone_what_does_not_fit_is_skipped_with_its_reason_and_never_booted():
    script, repeat = Script(), repeat_of()
    (done,) = run(script, repeat, memory_bytes=TIGHT, skips={repeat.trial_id(MPS): "too large by a byte"})
    assert script.boots == [("single",), ("sliced2",)]
    assert outcomes(done) == {"single": "ok", "sliced2": "ok", "mps2": "skipped"}
    assert done.frames["trials"].filter(arm="mps2")["reason"].to_list() == ["too large by a byte"]


def alone(repeat: Repeat, arm: str) -> Repeat:
    return replace(repeat, alone=arm)


def test_an_arm_alone_comes_last_in_the_boot_of_the_others():
    script = Script()
    first, second, last = run(script, alone(repeat_of(128), "mps2"), repeat_of(64), repeat_of(128))
    assert script.boots == [("single", "sliced2", "mps2")] and script.kept == ["mps2"]
    assert script.windows()[-3:] == ["mps2"] * 3
    assert [item.repeat.alone for item in (first, second, last)] == [None, None, "mps2"]
    assert outcomes(last) == {"mps2": "ok"}
    row = last.frames["trials"].row(0, named=True)
    assert (row["residency"], row["resident_arms"], row["boot_id"]) == ("alone", ["mps2"], "mps2-1")
    beside = second.frames["trials"].filter(arm="mps2").row(0, named=True)
    assert (beside["residency"], beside["boot_id"]) == ("resident", "mps2-1")
    assert row["trial_id"] != beside["trial_id"] and row["repeat_id"] != beside["repeat_id"]


def test_an_arm_alone_that_is_all_there_is_left_boots_alone():
    script = Script()
    (done,) = run(script, alone(repeat_of(), "single"))
    assert script.boots == [("single",)] and outcomes(done) == {"single": "ok"}


def test_an_arm_alone_among_arms_that_are_alone_anyway():
    script = Script()
    done = run(script, repeat_of(), alone(repeat_of(), "mps2"), memory_bytes=TIGHT)
    assert [outcomes(item) for item in done] == [dict.fromkeys(["single", "sliced2", "mps2"], "ok"), {"mps2": "ok"}]
    assert script.boots == [("single",), ("sliced2",), ("mps2",)]


def test_the_latency_that_one_boot_showed_sizes_the_windows_of_the_next():
    tokens_per_s = CLIENTS * 16 / 2.0  # a latency of two seconds
    script, pace = Script(lambda arm, number: tokens_per_s), Pace()
    run(script, repeat_of(number=0), pace=pace)
    run(script, repeat_of(number=1), pace=pace)
    pilots = [order.pilot for order in script.orders]
    assert pilots == [True] * 3 + [False] * (len(pilots) - 3)
    measured = [order for order in script.orders if not order.pilot]
    latencies = [LATENCIES_A_WINDOW] * 3 + [LATENCIES_A_WINDOW] * (len(measured) - 3)
    assert [order.window_s for order in measured] == pytest.approx([2.0 * each for each in latencies], rel=0.01)
    assert [order.latency_s for order in measured] == pytest.approx([2.0] * len(measured), rel=0.01)


def test_a_pilot_that_saw_too_much_costs_one_round():
    """Engines are slow in the pilot, a latency of four seconds, and have one of two seconds then."""
    script = Script(lambda arm, number: CLIENTS * 16 / (4.0 if number < 0 else 2.0))
    run(script, repeat_of(min_windows=3, max_windows=3), pace=Pace())
    lengths = [order.window_s for order in script.orders if not order.pilot]
    assert lengths == pytest.approx([LATENCIES_A_WINDOW * 4.0] * 3 + [LATENCIES_A_WINDOW * 2.0] * 6, rel=0.02)
    settling = [order.settle_s for order in script.orders if not order.pilot]
    assert settling == pytest.approx([LATENCIES_TO_SETTLE * 4.0] * 3 + [LATENCIES_TO_SETTLE * 2.0] * 6, rel=0.02)


def test_a_cell_that_was_not_seen_yet_is_looked_at_first():
    script, pace = Script(), Pace()
    run(script, repeat_of(64), pace=pace)
    run(script, repeat_of(128), pace=pace)
    assert sum(order.pilot for order in script.orders) == 6


def test_what_a_store_holds_of_a_cell_sizes_the_windows_of_a_host_that_saw_nothing():
    script = Script(lambda arm, number: CLIENTS * 16 / 2.0)
    before, after = repeat_of(number=0), repeat_of(number=1)
    (done,) = run(script, before)
    assert sum(order.pilot for order in script.orders) == 3  # a fresh host has to look
    latencies_s = recorded_latencies_s([before, after], done.frames["windows"])
    fresh, pace = Script(lambda arm, number: CLIENTS * 16 / 2.0), Pace()
    pace.hear(latencies_s)
    run(fresh, after, pace=pace)
    assert not any(order.pilot for order in fresh.orders)
    assert [order.window_s for order in fresh.orders] == pytest.approx(
        [LATENCIES_A_WINDOW * 2.0] * len(fresh.orders), rel=0.01
    )


def test_what_one_host_saw_of_a_repeat_spares_the_next_one_its_looks():
    tokens_per_s = CLIENTS * 16 / 2.0
    pace, elsewhere = Pace(), Pace()
    seen, other = repeat_of(number=0), repeat_of(2 * CLIENTS, number=0)
    run(Script(lambda arm, number: tokens_per_s), seen, other, pace=pace)
    elsewhere.hear(pace.of(seen))
    fresh = Script(lambda arm, number: tokens_per_s)
    run(fresh, repeat_of(number=1), pace=elsewhere)
    assert not any(order.pilot for order in fresh.orders)
    assert elsewhere.known_s(other, other.measured) is None


def test_the_latest_boot_counts_and_what_was_seen_here_counts_more():
    rates = {0: CLIENTS * 16 / 2.0, 1: CLIENTS * 16 / 4.0}
    first, second = (repeat_of(number=number) for number in rates)
    early, late = (
        run(Script(lambda arm, number, rate=rate: rate), repeat_of(number=n))[0] for n, rate in rates.items()
    )
    windows = pl.concat(
        [
            early.frames["windows"].with_columns(start_ns=pl.lit(1, pl.Int64)),
            late.frames["windows"].with_columns(start_ns=pl.lit(2, pl.Int64)),
        ]
    )
    pace = Pace()
    pace.note(first, SINGLE, 1.0)
    pace.hear(recorded_latencies_s([second, first], windows))
    assert pace.known_s(first, [SINGLE]) == 1.0
    assert pace.known_s(first, [MPS]) == pytest.approx(4.0, rel=0.01)
