"""From observations to rows, with latencies worked out by hand."""

from __future__ import annotations

import polars as pl
import pytest

from orchestrator.gpus import KINDS
from orchestrator.observation import Attachment, BootFacts, EngineFacts, GpuFacts, Observation, WindowOrder
from orchestrator.plan import plan
from orchestrator.records import REQUESTS, SAMPLES, WINDOWS
from orchestrator.rows import latencies, requests_frame, samples_frame, trial_row, window_row
from orchestrator.runner import BlockContext, RepeatLog
from orchestrator.trial import Arm, Cell, Measurement, Mps, Repeat, Single, Workload

MS = 10**6
MPS2 = Arm("mps2", Mps(2, 50), {"block_size": 32}, cores_per_engine=3, pinned=False)
REPEAT = Repeat(
    "simulated",
    Cell("H100", "Qwen2.5-0.5B", Workload("mixed", 64, 5), 4),
    (Arm("single", Single()), MPS2),
    {"block_size": 16, "dtype": "bfloat16"},
    Measurement(),
    2,
    11,
)
(BLOCK,) = plan([REPEAT], KINDS["H100"]).blocks
BOOT = BootFacts("boot", 40.0, "Toy", "GPU-1", "here", 2**20, 100, 4, "dummy", {"cores": [1]}, {"vllm": "1"})

# The window is (1 s, 2 s].
START_NS, SECONDS = 1_000 * MS, 1.0
#  sequence, asked, sent ms, first ms, last ms, status
ROWS = [
    (0, 3, 900, 1100, 1300, "ok"),  # a residual first request: TTFT 200
    (1, 5, 1300, 1400, 1800, "ok"),  # TTFT 100, TPOT 400 / 4 = 100, e2e 500
    (2, 5, 1800, 1950, 2300, "ok"),  # TTFT 150, ends after the window
    (1, 5, 500, 900, 1100, "ok"),  # first token before the window; TPOT 200 / 4 = 50, e2e 600
    (2, 5, 1100, 1400, 2000, "ok"),  # TTFT 300, ends on the edge, which belongs to it: TPOT 150, e2e 900
    (1, 5, 600, 1000, 1500, "ok"),  # first token on the start, which does not belong: TPOT 125, e2e 900
    (3, 5, 1000, None, None, "aborted"),
    (4, 5, 1000, 1400, 1900, "aborted"),  # TTFT 400, and never ended
    (5, 1, 1000, 1500, 1500, "ok"),  # one token: TTFT 500, e2e 500, no TPOT
]


def requests(rows=ROWS) -> pl.DataFrame:
    columns = {
        "engine": 0,
        "client": 0,
        "sequence": pl.Series([row[0] for row in rows], dtype=pl.Int64),
        "prompt_tokens": 64,
        "output_tokens_asked": pl.Series([row[1] for row in rows], dtype=pl.Int64),
        "output_tokens": pl.Series([row[1] for row in rows], dtype=pl.Int64),
    }
    stamps = {
        name: pl.Series([None if row[at] is None else row[at] * MS for row in rows], dtype=pl.Int64)
        for name, at in (("sent_ns", 2), ("first_token_ns", 3), ("last_token_ns", 4))
    }
    status = pl.Series([row[5] for row in rows], dtype=pl.String)
    return pl.select(**{name: pl.lit(value) for name, value in (columns | stamps).items()}, status=status)


def seen(engines=(), rows=ROWS, **changed) -> Observation:
    samples = pl.DataFrame({"time_ns": [1], "source": ["gpu"], "metric": ["power_w"], "value": [300.0]})
    facts = {
        "start_ns": START_NS, "duration_s": SECONDS, "warmup_s": 0.5, "output_tokens": 30, "prompt_tokens": 320,
        "requests": requests(rows), "samples": samples, "engines": tuple(engines), "gpu": GpuFacts(),
        "attachment": Attachment(method="simulated"),
    }  # fmt: skip
    return Observation(**(facts | changed))


def row(observation: Observation) -> dict[str, object]:
    trial = RepeatLog.start(REPEAT).trials["mps2"]
    order = WindowOrder(MPS2, REPEAT.cell.workload, 4, 0.5, SECONDS, 1)
    return window_row(REPEAT, trial, BOOT, observation, order, 3, 7, "single")


def engine(index: int, **facts) -> EngineFacts:
    return EngineFacts(index, 2, 2.0, 10, 0, **({"waiting_mean": 0.0, "preemptions": 0} | facts))


def test_latencies_by_hand():
    found = latencies(seen())
    # TTFT of 100, 150, 200, 300, 400, 500 ms; TPOT of 50, 100, 125, 150; latency of 500, 500, 600, 900, 900
    assert found == {
        "ttft_p50_s": pytest.approx(0.250),
        "ttft_p99_s": pytest.approx(0.400 + 0.95 * 0.100),
        "tpot_p50_s": pytest.approx(0.1125),
        "tpot_p99_s": pytest.approx(0.125 + 0.97 * 0.025),
        "e2e_p50_s": pytest.approx(0.600),
        "e2e_p99_s": pytest.approx(0.900),
    }


def test_where_nothing_came_latencies_are_null():
    assert set(latencies(seen(rows=[(0, 5, 1000, None, None, "aborted")])).values()) == {None}
    assert set(latencies(seen(rows=[])).values()) == {None}


def test_engines_are_summed_and_the_busiest_named():
    one = engine(0, steps=60, steps_full_graph=30, steps_piecewise_graph=15, steps_tokens=900,
                 steps_padded_tokens=1100, running_mean=1.5, kv_usage_max=0.2,
                 engine_core_cpu=0.5, engine_core_speed_mops=90.0, frontend_cpu=0.2, prefix_cache_hits=0)  # fmt: skip
    two = engine(1, steps=40, steps_full_graph=30, steps_piecewise_graph=5, steps_tokens=600,
                 steps_padded_tokens=900, running_mean=2.0, kv_usage_max=0.1,
                 engine_core_cpu=0.7, engine_core_speed_mops=80.0, frontend_cpu=0.1, prefix_cache_hits=1)  # fmt: skip
    found = row(seen([one, two]))
    assert found["requests_completed"] == 20 and found["in_flight_mean"] == 4.0
    assert found["steps"] == 100 and found["running_mean"] == 3.5 and found["kv_usage_max"] == 0.2
    shares = [found[f"steps_{mode}_share"] for mode in ("full_graph", "piecewise_graph", "eager")]
    assert shares == pytest.approx([0.6, 0.2, 0.2])
    assert (found["steps_tokens"], found["steps_padding_share"]) == (1500, pytest.approx(0.25))
    assert (found["engine_core_cpu_max"], found["engine_core_speed_mops"], found["frontend_cpu_max"]) == (
        0.7,
        80.0,
        0.2,
    )
    assert not found["certified"] and found["certificate_failures"] == ["prefix_cache: 1 prefix cache hits"]


def test_what_one_engine_cannot_say_is_not_said_for_the_arm():
    found = row(seen([engine(0, steps=10, engine_core_cpu=0.4), engine(1, steps=None, engine_core_cpu=None)]))
    assert found["steps"] is None and found["steps_full_graph_share"] is None and found["engine_core_cpu_max"] is None
    assert found["steps_tokens"] is None and found["steps_padding_share"] is None
    idle = row(seen([engine(0, steps=0, steps_full_graph=0), engine(1, steps=0, steps_full_graph=0)]))
    assert idle["steps"] == 0 and idle["steps_full_graph_share"] is None


def test_a_window_row_has_every_column_of_the_table_but_the_ids_of_its_block():
    found = row(seen([engine(0), engine(1)]))
    assert set(WINDOWS) - set(found) == {"attempt_id", "block_id"} and set(found) <= set(WINDOWS)
    assert found["certified"] and found["certificate_failures"] == []
    assert (found["round_index"], found["order_index"], found["window_index"]) == (3, 7, 0)
    assert found["previous_arm"] == "single" and found["boot_id"] == "boot"


def test_requests_and_samples_carry_their_window():
    frame = requests_frame("t", "a", 4, seen())
    assert frame.schema == REQUESTS and frame.height == len(ROWS)
    assert frame.select("trial_id", "attempt_id", "window_index").unique().rows() == [("t", "a", 4)]
    frame = samples_frame("t", "a", 4, seen())
    assert frame.schema == SAMPLES and frame.rows() == [("t", "a", 4, 1, "gpu", "power_w", 300.0)]


def test_a_trial_row_says_what_was_asked_and_what_came_up():
    log = RepeatLog.start(REPEAT)
    trial = log.trials["mps2"]
    context = BlockContext("toy", "sha")
    found = trial_row(log, trial, BLOCK, context)
    assert found["engine_args"] == '{"block_size":32,"dtype":"bfloat16"}'
    assert (found["arm"], found["baseline"], found["sharing"], found["engines"]) == ("mps2", "single", "mps", 2)
    assert (found["active_thread_percentage"], found["cores_per_engine"], found["pinned"]) == (50, 3, False)
    # never booted: what the plan had in mind, and nothing made up
    assert found["kv_bytes_per_engine"] == BLOCK.sizing["mps2"].kv_bytes
    assert found["boot_id"] is None and found["gpu_uuid"] is None and found["started_unix_s"] is None
    trial.boot = BOOT
    found = trial_row(log, trial, BLOCK, context)
    assert found["kv_bytes_per_engine"] == 2**20 and found["boot_id"] == "boot" and found["weights"] == "dummy"
    assert trial_row(log, log.trials["single"], BLOCK, context)["active_thread_percentage"] is None
    assert found["planned_boots"] is None
    fixed = BlockContext("toy", "sha", planned_boots={REPEAT.repeat_id: 5})
    assert trial_row(log, trial, BLOCK, fixed)["planned_boots"] == 5
