"""The simulated GPU's time of a step against steps of one kind that single engines ran: prefills and replays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from orchestrator.gpus import KINDS
from orchestrator.simulated.engine import Job
from orchestrator.simulated.kernels import StepCosts
from orchestrator.simulated.sharing import phases, slowdown
from orchestrator.store import ResultStore
from workloads.architecture import Batch
from workloads.catalogue import load_model

H200 = KINDS["H200"]
REFERENCE = Path(__file__).parent.parent / "reference"
IDS = ["trial_id", "attempt_id", "window_index"]
CELL = ["model", "kind", "context", "sweep"]


@pytest.fixture(scope="module")
def steps() -> pl.DataFrame:
    """A row a kind of step: CELL, `step_s` while the GPU was active, `tokens`, `sequences`, `clock` of the boost clock.

    Served prefills whose steps are full, and replayed steps; certified windows of single engines on H200s.
    """
    stores = [ResultStore.open(str(REFERENCE / name), create=False) for name in ("h200", "h200-pair")]
    trials, windows, samples = (
        pl.concat([store.read(table) for store in stores]) for table in ("trials", "windows", "samples")
    )
    own = trials.filter(engines=1, sharing="single", outcome="ok").select(
        *IDS[:2], "model", "kind", "sweep", context="prompt_tokens"
    )
    seen = windows.filter("certified").rename({"prompt_tokens": "prompt_sum"}).join(own, on=IDS[:2])
    step = pl.col("duration_s") * pl.col("gpu_active_share") / pl.col("steps")
    served = seen.filter(kind="prefill").with_columns(step_s=step, tokens=pl.col("prompt_sum") / pl.col("steps"))
    served = served.filter(pl.col("tokens") > 8000).with_columns(sequences=pl.col("tokens") / pl.col("context"))
    facts = samples.filter(source="engine0.step").pivot(on="metric", index=IDS, values="value")
    replayed = seen.filter(pl.col("kind").str.ends_with("-replay")).join(facts, on=IDS)
    columns = [*CELL, "step_s", "tokens", "sequences", pl.col("sm_clock_mhz") / H200.boost_clock_mhz]
    every = pl.concat([served.select(columns), replayed.select(columns)])
    return every.group_by(CELL).mean().sort(CELL).rename({"sm_clock_mhz": "clock"})


@pytest.fixture(scope="module")
def mixed() -> pl.DataFrame:
    """A row a cell of the landscape whose single engine kept the GPU busy: its mean step while the GPU was active, the
    sequences and whole prompts in it. Every step is one graph, so that there are no gaps between pieces."""
    store = ResultStore.open(str(REFERENCE / "h200"), create=False)
    sweep = "scaling-landscape"
    own = store.read("trials", sweep).filter(arm="single", outcome="ok")
    cell = own.select(*IDS[:2], "model", "output_tokens", context="prompt_tokens")
    seen = store.read("windows", sweep).filter("certified", pl.col("gpu_active_share") > 0.7)
    seen = seen.drop("prompt_tokens", "output_tokens").join(cell, on=IDS[:2])
    step_s = pl.col("duration_s") / pl.col("steps")
    means = seen.with_columns(
        step_s=step_s * pl.col("gpu_active_share"),
        prompts=pl.col("output_tokens_s") / pl.col("output_tokens") * step_s,
        clock=pl.col("sm_clock_mhz") / H200.boost_clock_mhz,
        sequences=pl.col("running_mean"),
        filled=1 - pl.col("steps_padding_share"),
    )
    columns = ["step_s", "prompts", "sequences", "clock", "filled"]
    return means.group_by("model", "context").agg(pl.col(columns).mean()).sort("model", "context")


def off_mixed(
    model: str, context: int, step_s: float, prompts: float, sequences: float, clock: float, filled: float
) -> float:
    """The logarithm of the modelled mean step over the measured one: steps with so many whole prompts as there are on
    average, the next smaller and the next larger number in turn, the other sequences half through their answers."""
    costs = StepCosts(load_model(model), H200)
    decodes, fewer = round(sequences - prompts), int(prompts)
    seconds = 0.0
    for count, share in ((fewer, fewer + 1 - prompts), (fewer + 1, prompts - fewer)):
        batch = Batch(decodes, decodes * (context + 64), ((context, 0),) * count)
        cost = costs.exact(batch, round(batch.tokens / filled))
        seconds += share * (cost.compute_s / clock + cost.memory_s + cost.gap_s)
    return float(np.log(seconds / step_s))


def test_mixed_steps_take_the_time_that_the_model_says(mixed: pl.DataFrame) -> None:
    assert mixed.height >= 12 and mixed["model"].n_unique() >= 3
    logs = [off_mixed(**row) for row in mixed.iter_rows(named=True)]
    assert abs(np.mean(logs)) < 0.05 and np.abs(logs).max() < 0.1, np.round(logs, 3)


def off(model: str, kind: str, context: int, step_s: float, tokens: float, sequences: float, clock: float) -> float:
    """The logarithm of the modelled time over the measured one, at the clock of the measurement."""
    count = round(sequences)
    batch = Batch(count, count * (context + 1)) if kind == "decode-replay" else Batch(0, 0, ((context, 0),) * count)
    cost = StepCosts(load_model(model), H200).exact(batch)
    seconds = cost.compute_s / clock + cost.memory_s + cost.gap_s
    return float(np.log(seconds / step_s * tokens / batch.tokens))


def test_steps_of_single_engines_take_the_time_that_the_model_says(steps: pl.DataFrame) -> None:
    assert steps["model"].n_unique() >= 4 and steps["clock"].min() < 0.8 < 0.99 < steps["clock"].max()  # type: ignore[operator]
    logs = {
        "decode": [off(**row) for row in steps.filter(kind="decode-replay").drop("sweep").iter_rows(named=True)],
        "prefill": [off(**row) for row in steps.filter(kind="prefill-replay").drop("sweep").iter_rows(named=True)],
        "served": [off(**row) for row in steps.filter(kind="prefill").drop("sweep").iter_rows(named=True)],
    }
    assert {name: len(each) >= 5 for name, each in logs.items()} == dict.fromkeys(logs, True)
    for name, each in logs.items():
        assert abs(np.mean(each)) < 0.04 and np.abs(each).max() < 0.1, (name, np.round(each, 3))


def test_replayed_decodes_of_two_engines_under_mps_slow_each_other_as_the_model_says() -> None:
    """Nobody launches anything here: what they lose, they lose to one another on the GPU."""
    store, sweep = ResultStore.open(str(REFERENCE / "h200"), create=False), "ablation-decode-replay"
    own = (
        store.read("trials", sweep).filter(arm="mps2", outcome="ok").select(*IDS[:2], "model", context="prompt_tokens")
    )
    facts = store.read("samples", sweep).filter(source="engine0.step").pivot(on="metric", index=IDS, values="value")
    seen = (
        store.read("windows", sweep).filter("certified").drop("prompt_tokens").join(own, on=IDS[:2]).join(facts, on=IDS)
    )
    step_s = (2 * pl.col("duration_s") / pl.col("steps")).alias("step_s")  # both engines' steps are counted
    means = seen.select("model", "context", "sequences", step_s).group_by("model", "context").mean()
    logs: dict[str, list[float]] = {"as it is": [], "tails at once": []}
    for row in means.iter_rows(named=True):
        count = round(row["sequences"])
        cost = StepCosts(load_model(row["model"]), H200).exact(Batch(count, count * (row["context"] + 1)))
        held = phases(Job(cost, cost.seconds, 0.0), cost.seconds)
        free = tuple((*phase[:3], 0.0) for phase in held)
        for name, one in (("as it is", held), ("tails at once", free)):
            logs[name].append(float(np.log(cost.seconds * slowdown([one, one]) / row["step_s"])))
    assert means.height >= 15
    assert abs(np.mean(logs["as it is"])) < 0.1 and np.abs(logs["as it is"]).max() < 0.2, np.round(logs["as it is"], 3)
    # If kernels of two engines could begin and end at once, they would be far faster than they were.
    assert np.mean(logs["tails at once"]) < -0.2, np.round(logs["tails at once"], 3)
