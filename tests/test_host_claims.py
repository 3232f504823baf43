"""Claims about the host with the truth planted: ladders that pass 8 s, and gains with the host's work and without."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

from dashboards.ablation import gain_ratio
from dashboards.claim_cells import Cell, Reading, planned, size_of
from dashboards.claim_rules import Finding
from dashboards.claims import claims
from dashboards.host_claims import ASYNC, PLAIN, SCHEDULING, SECOND, HostWork, host_findings, same_gain, won_back
from orchestrator.records import TRIALS, WINDOWS
from orchestrator.verdicts import VERDICTS
from tests.planted import frames
from tests.test_claims import NO_PARTS, verdicts

Tables = tuple[pl.DataFrame, pl.DataFrame]
ARMS = ((PLAIN, "single", 1), (ASYNC, "single", 1), (SECOND, "mps", 2))
CLIENTS = (32, 64, 128, 256, 512)
TOKENS = 512
AT_ONE_CLIENT = 905.0  # tokens/s: 512 * sqrt(200) / 905 = 8 s with 200 clients
CELL = {"sweep": SCHEDULING, "model": "google/gemma-3-4b-pt", "prompt_tokens": TOKENS, "output_tokens": TOKENS}
WORLD = {"backend": "vllm", "gpu_kind": "H200", "gpu_name": "NVIDIA H200"}


def ladder(
    one: float = 1.33, two: float = 1.35, *, boots: int = 3, sd: float = 0.002, plain_sd: float = 0.0, **more: object
) -> Tables:
    """Async scheduling and the second engine gain `one` and `two` at every latency that the ladders pass.

    Throughput is that of one client times the square root of the number of clients; latency follows by Little's law, so
    that log throughput is linear in log latency, and an arm k times as fast at equal clients gains k squared at equal
    latency. sd: of log throughput from boot to boot, and plain_sd: the same of the plain engine alone.
    """
    rng = np.random.default_rng(7)
    speed = np.log([1.0, one, two])[None, None, :, None] / 2
    curve = np.log(AT_ONE_CLIENT * np.sqrt(CLIENTS))[:, None, None, None]
    boot = rng.normal(0, sd, (1, boots, 3, 1))
    boot[:, :, 0] += plain_sd * np.linspace(-1, 1, boots)[None, :, None]
    windows_of = rng.normal(0, 0.0005, (len(CLIENTS), boots, 3, 2))
    trials, windows = frames(curve + speed + boot + windows_of, ARMS, **(CELL | WORLD | more))
    trials = trials.with_columns(
        concurrency=pl.col("concurrency").replace_strict(range(1, 1 + len(CLIENTS)), CLIENTS, return_dtype=pl.Int64)
    )
    rate = pl.col("output_tokens") / pl.col("duration_s")
    slow = windows.join(trials.select("trial_id", "concurrency"), on="trial_id").with_columns(
        e2e_p50_s=pl.col("concurrency") * TOKENS / rate
    )
    return trials, slow.drop("concurrency")


def found(tables: Tables, boots: int | None = 3) -> Finding:
    return same_gain(*tables, boots)


def test_c11_holds_where_both_gains_are_alike() -> None:
    finding = found(ladder())
    assert (finding.holds, finding.why) == (True, ())
    *parts, percent = finding.figures.split("; ")
    told = [float(part.split(" (")[0].rsplit(" ", 1)[1]) for part in parts]
    assert told == pytest.approx([1.33, 1.35, 1.35 / 1.33], rel=0.005)
    assert percent == f"in percent {100 * told[1] - 100:.0f} to {100 * told[0] - 100:.0f}"


@pytest.mark.parametrize(
    ("one", "two", "at_fault"),
    [
        (0.97, 1.05, "async scheduling"),
        (1.05, 0.97, "two engines with MPS"),
        (1.2, 1.4, "the second over the first"),
        (1.4, 1.2, "the second over the first"),
    ],
)
def test_c11_fails_by_each_part_alone(one: float, two: float, at_fault: str) -> None:
    finding = found(ladder(one, two))
    assert finding.holds is False
    (why,) = finding.why
    assert why.startswith(f"contradicted by the whole interval: {at_fault}")


@pytest.mark.parametrize(
    ("one", "two", "at_fault"),
    [
        (1.0, 1.05, ["async scheduling"]),
        (1.05, 1.0, ["two engines with MPS, without it"]),
        (1.2, 1.32, ["the second over the first"]),
        (1.4, 1.26, ["the second over the first"]),
    ],
)
def test_c11_is_open_where_an_interval_holds_a_bound(one: float, two: float, at_fault: list[str]) -> None:
    finding = found(ladder(one, two, sd=0.005))
    assert finding.holds is None
    assert [why.rsplit(": ", 1)[1] for why in finding.why] == at_fault


def test_c11_compares_the_two_arms_without_the_noise_of_the_plain_engine() -> None:
    """A plain engine that scatters from boot to boot widens both gains, and not their ratio."""
    tables = ladder(plain_sd=0.03)
    finding = found(tables)
    assert finding.holds is True
    parts = finding.figures.split("; ")[:3]
    ends = [tuple(map(float, part.split("(")[1].rstrip(")").split(" to "))) for part in parts]
    one, two = (Reading(planned(SCHEDULING)[-1], "", sum(pair) / 2, *pair, boots=3) for pair in ends[:2])
    carried = gain_ratio(two, one)
    assert carried.high > 1.1, "with the plain engine's noise counted twice it would be open"
    assert ends[2][1] - ends[2][0] < (carried.high - carried.low) / 5


def test_c11_takes_the_price_of_looking_unless_the_boots_were_planned() -> None:
    tables = ladder(sd=0.016)
    assert found(tables, 3).holds is True
    assert found(tables, None).holds is None


def test_c11_is_open_without_measurement() -> None:
    for nothing in (
        (TRIALS.to_frame(), WINDOWS.to_frame()),
        ladder(backend="simulated"),
        ladder(model="Qwen/Qwen2.5-1.5B"),
        ladder(output_tokens=128),
        ladder(sweep="plateau"),
    ):
        finding = found(nothing)
        assert finding.holds is None
        assert finding.why == ("not measured: gemma-3-4b with 32, 64, 128, 256, 512 clients",)


def test_c11_needs_three_boots() -> None:
    finding = found(ladder(boots=2))
    assert finding.holds is None
    assert len(finding.why) == 3 and all("2 of at least 3 boots" in why for why in finding.why)


def test_c11_extrapolates_nothing() -> None:
    trials, windows = ladder()
    for factor in (0.3, 4.0):
        finding = found((trials, windows.with_columns(e2e_p50_s=pl.col("e2e_p50_s") * factor)))
        assert finding.holds is None
        assert all("outside an arm's ladder in 3 of 3 boots" in why for why in finding.why)
        assert finding.figures.count("not known") == 3


def test_c11_wants_every_rung_in_every_boot() -> None:
    trials, windows = ladder()
    # A rung far from 8 s: what is read there would not change.
    missing = (pl.col("arm") == ASYNC) & (pl.col("concurrency") == 32) & (pl.col("repeat") == 1)
    lost = trials.filter(missing)["trial_id"].item()
    gap = f"{ASYNC} measured with 32 clients in 2 of 3 boots"
    for tables in (
        (trials.filter(~missing), windows),
        (trials, windows.with_columns(certified=pl.col("trial_id") != lost)),
        (trials, windows.with_columns(e2e_p50_s=pl.when(pl.col("trial_id") != lost).then("e2e_p50_s"))),
        (trials.with_columns(outcome=pl.when(missing).then(pl.lit("failed")).otherwise("outcome")), windows),
    ):
        finding = found(tables)
        assert finding.holds is None
        assert [why.split(": ")[0] for why in finding.why] == ["async scheduling", "the second over the first"]
        assert all(gap in why for why in finding.why)
    other = found((trials.with_columns(pl.col("concurrency").replace({256: 300})), windows))
    assert other.holds is None and "256 clients in 0 of 3 boots" in other.why[0]


def test_c11_fails_by_one_gain_though_the_other_was_not_measured() -> None:
    trials, windows = ladder(one=0.9)
    finding = found((trials.filter(pl.col("arm") != SECOND), windows))
    assert finding.holds is False
    assert len(finding.why) == 1 and "async scheduling" in finding.why[0]
    good, windows = ladder()
    open_ = found((good.filter(pl.col("arm") != SECOND), windows))
    assert open_.holds is None
    assert f"{SECOND} measured with 32, 64, 128, 256, 512 clients in 0 of 3 boots" in open_.why[0]


def with_alone(tables: Tables, alone_from: int) -> Tables:
    trials, windows = tables
    alone = pl.when(pl.col("concurrency") >= alone_from).then(pl.lit("alone")).otherwise(pl.lit("resident"))
    return trials.with_columns(residency=alone), windows


def test_c11_is_read_where_the_ladder_passes_the_level() -> None:
    """8 s lie between 128 and 512 clients: with large loads alone, in the one part of the ladder or in the other."""
    whole = found(ladder())
    for alone_from in (128, 64, 32):
        assert found(with_alone(ladder(), alone_from)) == whole
    # The plain engine passes them between 128 clients, the last of resident engines, and 256, the first alone: there
    # nothing is read. The others pass them later, so that their ratio is known.
    torn = found(with_alone(ladder(), 256))
    assert torn.holds is None
    assert [why.split(": ")[0] for why in torn.why] == ["async scheduling", "two engines with MPS, without it"]
    assert all("outside an arm's ladder in 3 of 3 boots" in why for why in torn.why)
    assert "the second over the first 1.01" in torn.figures
    none = found(with_alone(ladder(1.05, 1.06), 256))
    assert none.holds is None and len(none.why) == 3
    assert all("engines alone: the latency is out" in why and "engines resident: the l" in why for why in none.why)


def doubled(tables: Tables, **changes: str) -> Tables:
    """All of it once more, elsewhere."""
    trials, windows = tables
    ids = ["trial_id", "attempt_id", "boot_id"]
    there = trials.with_columns(pl.col([*ids, "repeat_id"]) + "x", **{key: pl.lit(to) for key, to in changes.items()})
    return pl.concat([trials, there]), pl.concat([windows, windows.with_columns(pl.col(ids) + "x")])


def test_c11_mixes_no_worlds() -> None:
    kinds = found(doubled(ladder(), gpu_kind="H100"))
    assert (kinds.holds, kinds.why) == (None, ("measured on several kinds of GPU",))
    both = found(doubled(ladder(), residency="alone"))
    assert (both.holds, both.why) == (None, ("engines resident and engines alone both pass 8 s",))
    predicted = found(doubled(ladder(), backend="simulated"))
    assert predicted == found(ladder())


def gains(
    tokens: Callable[[Cell], float] = lambda cell: 1.5 if cell.kind == "text" else 1.2,
    images: Callable[[Cell], float] = lambda cell: 1.4 if cell.kind == "image" else 1.1,
    half: float = 0.01,
) -> pl.DataFrame:
    return pl.concat([verdicts("tokenisation", tokens, half=half), verdicts("images", images, half=half)])


def planting(kind: str, given: float, spared: float) -> Callable[[Cell], float]:
    """The same everywhere but at the first context of the smallest model, which alone differs."""

    def gain(cell: Cell) -> float:
        if (cell.billions, cell.prompt_tokens) in ((0.5, 256), (4.0, 512)):
            return given if cell.kind == kind else spared
        return 1.5 if cell.kind == kind else 1.2

    return gain


def test_c12_holds_where_the_work_is_won_back() -> None:
    finding = won_back(gains())
    assert (finding.holds, finding.why) == (True, ())
    assert "tokenisation: 6 of 6 cells measured" in finding.figures
    assert "image preprocessing: 2 of 2 cells measured" in finding.figures
    assert "over the gain without it, 2 of 2 cells measured, 4B image at 512: 1.273" in finding.figures


# Gains with the work and without in one cell, whether the claim holds then, and what is said.
OF_ONE_CELL = [
    (0.9, 0.8, False, "contradicted by the whole interval"),
    (1.2, 1.3, False, "over the gain without it: contradicted by the whole interval"),
    (1.0, 0.9, None, "the interval holds the bound"),
    (1.2, 1.2, None, "over the gain without it: the interval holds the bound"),
]


@pytest.mark.parametrize(("given", "spared", "holds", "said"), OF_ONE_CELL)
@pytest.mark.parametrize("half", ["tokenisation", "image preprocessing"])
def test_c12_is_decided_by_each_part_in_each_cell(
    half: str, given: float, spared: float, holds: bool | None, said: str
) -> None:
    if half == "tokenisation":
        rows, place = gains(tokens=planting("text", given, spared)), "0.5B text at 256"
    else:
        rows, place = gains(images=planting("image", given, spared)), "4B image at 512"
    finding = won_back(rows)
    assert finding.holds is holds
    (why,) = finding.why
    assert why.startswith(f"{half}: {said}: {place}")


def test_c12_carries_the_intervals_of_both_gains_through() -> None:
    near = (lambda cell: 1.3 if cell.kind != "mixed" else 1.2,) * 2
    assert won_back(gains(*near, half=0.055)).holds is True
    assert won_back(gains(*near, half=0.08)).holds is None


def test_c12_is_open_without_either_half_and_says_which() -> None:
    rows = gains()
    tokens = won_back(rows.filter(sweep="tokenisation"))
    assert (tokens.holds, tokens.why) == (None, ("image preprocessing: not measured: 4B image at 512, 1024",))
    assert "image preprocessing: none measured of 4B image at 512, 1024" in tokens.figures
    images = won_back(rows.filter(sweep="images"))
    assert images.why == ("tokenisation: not measured: 0.5B, 1.5B text at 256, 1024, 4096",)
    assert won_back(VERDICTS.to_frame()).holds is None
    assert won_back(rows.with_columns(backend=pl.lit("simulated"))).holds is None


def test_c12_is_open_where_a_cell_lacks_its_counterpart_or_a_boot() -> None:
    rows = gains()
    here = (pl.col("sweep") == "tokenisation") & (pl.col("kind") == "mixed") & (pl.col("prompt_tokens") == 1024)
    alone = won_back(rows.filter(~here))
    assert alone.holds is None
    assert alone.why == ("tokenisation: over the gain without it: without it: not measured: 0.5B, 1.5B text at 1024",)
    few = won_back(rows.with_columns(boots=pl.when(pl.col("kind") == "image").then(2).otherwise("boots")))
    assert few.why == ("image preprocessing: 2 of 3 boots: 4B image at 512, 1024",)


def test_c12_fails_by_one_half_though_the_other_was_not_measured() -> None:
    finding = won_back(gains(tokens=planting("text", 0.9, 0.8)).filter(sweep="tokenisation"))
    assert finding.holds is False
    assert len(finding.why) == 1 and finding.why[0].startswith("tokenisation: contradicted")


def test_c12_says_of_a_sweep_that_there_is_none() -> None:
    works = (HostWork("tokenisation", "tokenisation", "text", "mixed"), HostWork("audio", "no-such", "audio", "mixed"))
    finding = won_back(gains(), works)
    assert (finding.holds, finding.why) == (None, ("audio: not measured, there is no such sweep file",))
    with pytest.raises(ValueError, match="names no cell"):
        won_back(gains(), (HostWork("audio", "tokenisation", "audio", "mixed"),))


def test_both_stand_among_the_claims_in_the_studys_order() -> None:
    tables = ladder(sd=0.016)
    told = {each.id: each for each in claims(gains(), *tables, NO_PARTS, 3)}
    assert [told[number].outcome for number in ("C11", "C12")] == ["reproduced"] * 2
    assert [*told][9:13] == ["C10", "C11", "C12", "C15"]
    unplanned = {each.id: each.outcome for each in claims(gains(), *tables, NO_PARTS)}
    assert unplanned["C11"] == "undecided"
    assert set(host_findings(gains(), *tables)) == {"C11", "C12"}


def test_a_models_size_is_read_from_its_name() -> None:
    assert {cell.model: cell.size for cell in planned(SCHEDULING)} == {
        "google/gemma-3-4b-pt": "4B", "Qwen/Qwen2.5-1.5B": "1.5B"
    }  # fmt: skip
    assert {cell.billions for cell in planned("images")} == {4.0}
    with pytest.raises(ValueError, match="no size in the name"):
        size_of("some/gemma-3-pt")
