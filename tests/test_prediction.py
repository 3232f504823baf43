"""Predicted beside measured, from two stores whose rates are planted: every count and ratio is known beforehand.

Cells are told apart by their clients, cell n having 64 n: 1 to 3 are in both stores, 4 was measured only, 5 and 6 were
simulated only.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from dashboards.marked_page import with_text
from dashboards.prediction import MEASURED, SIMULATED, Side, compare, main, pairs_table, side, tables
from orchestrator.errors import StoreError
from orchestrator.records import WINDOWS
from orchestrator.store import ResultStore
from tests.planted import THREE_ARMS, Floats, frames
from tests.synthetic_landscape import write

BOOTS, ROUNDS = 3, 4
SMALL, LARGE = "Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-1.5B"

# By cell, in logs: measured ratios to `single`, and how far off the predicted ones are; the rate of `single` likewise.
HOST, GAIN = np.array([0.0, 0.2, -0.3, 0, 0, 0]), np.array([0.5, 0.3, -0.5, 0, 0, 0])
HOST_OFF, GAIN_OFF = np.array([0.15, -0.1, 0.1, 0, 0, 0]), np.array([0.2, -0.3, 0.22, 0, 0, 0])
RATE, RATE_OFF = np.log(1000), np.log([2, 2, 3, 1, 1, 1])
# By boot. Student's half-widths over three boots, 4.303 / sqrt(3) standard deviations: 0.124 of the host's part and of
# the overlap's, 0.248 of the gain. With looks they would be twice as wide.
HOST_SPREAD, GAIN_SPREAD = np.array([-0.05, 0, 0.05]), np.array([-0.1, 0, 0.1])

SPEC = {
    "schema_version": 1,
    "name": "planted",
    "question": "What is planted?",
    "backend": "vllm",
    "gpu": "H200",
    "arms": {"single": {"sharing": "single"}, "timesliced2": {"sharing": "timesliced", "engines": 2},
             "mps2": {"sharing": "mps", "engines": 2}},
    "workload": {"kind": "mixed", "prompt_tokens": 128, "output_tokens": 64},
    "sweep": {"include": [{"model": SMALL, "concurrency": 64}, {"model": SMALL, "concurrency": 128},
                          {"model": LARGE, "concurrency": 192}]},
    "repeats": BOOTS,
}  # fmt: skip


def log_rates(host: Floats, gain: Floats, single: Floats, spread: float) -> Floats:
    """Shape cells × boots × arms × rounds. Where boots scatter, the last round has rates that must not count."""
    by_boot = np.stack([0 * HOST_SPREAD, HOST_SPREAD, GAIN_SPREAD], axis=1) * spread
    by_cell = np.stack([single, single + host, single + gain], axis=1)
    whole = by_cell[:, None, :, None] + by_boot[None, :, :, None] + np.zeros(ROUNDS)
    whole[..., -1] += (1 + np.arange(3)) * spread
    return np.asarray(whole)


def add(store: ResultStore, backend: str, cells: Iterable[int], shift: float = 0.0, **constants: object) -> None:
    """Write one backend's cells: measured ones in all their boots, simulated ones, which do not scatter, in one.

    shift: of the logs of all rates but those of `single`.
    """
    predicted = backend == SIMULATED
    logs = log_rates(
        HOST + shift + HOST_OFF * predicted, GAIN + shift + GAIN_OFF * predicted, RATE + RATE_OFF * predicted,
        spread=0.0 if predicted else 1.0,
    )[:, : 1 if predicted else BOOTS]  # fmt: skip
    constants = {"sweep": "planted", "gpu_kind": "H200", "gpu_name": "NVIDIA H200", "spec_sha": "sha", **constants}
    trials, windows = frames(logs, THREE_ARMS, backend=backend, **constants)
    trials = trials.filter(pl.col("concurrency").is_in(list(cells))).with_columns(
        *(pl.format("{}-{}", "backend", name).alias(name) for name in ("trial_id", "repeat_id", "boot_id")),
        attempt_id=pl.format("{}-{}", "backend", "repeat_id"),
        concurrency=64 * pl.col("concurrency"),
        model=pl.when(concurrency=3).then(pl.lit(LARGE)).otherwise(pl.lit(SMALL)),
    )
    late = pl.col("repeat") > 0
    bound = (
        pl.when(late, arm="mps2").then(pl.lit(None, pl.String)).when(late).then(pl.lit("power"))
        .otherwise(pl.lit("engine_core"))
    )  # fmt: skip
    own = trials.select("trial_id", "attempt_id", "boot_id", "arm", "repeat")
    windows = (
        windows.drop("attempt_id", "boot_id")
        .with_columns(trial_id=pl.format("{}-{}", pl.lit(backend), "trial_id"))
        .join(own, on="trial_id")
        .with_columns(
            certified=pl.col("round_index") < ROUNDS - 1, bound_by=pl.lit("gpu_compute") if predicted else bound
        )
    )
    write(store, trials, windows.select(WINDOWS.names()))


def store_of(path: Path, backend: str, cells: Iterable[int] = (1, 2, 3), **constants: object) -> ResultStore:
    store = ResultStore.open(str(path), create=True)
    add(store, backend, cells, **constants)
    return store


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[ResultStore, ResultStore]:
    """Measured and simulated. Each has rows of the other backend, too, that must not count."""
    folder = tmp_path_factory.mktemp("stores")
    measured = store_of(folder / "measured", MEASURED, (1, 2, 3, 4))
    add(measured, SIMULATED, (1,), shift=1.0)
    simulated = store_of(folder / "simulated", SIMULATED, (1, 2, 3, 5, 6))
    add(simulated, MEASURED, (1,), shift=-1.0)
    measured.write_spec("planted", "sha", json.dumps(SPEC))
    return measured, simulated


@pytest.fixture(scope="module")
def sides(stores: tuple[ResultStore, ResultStore]) -> tuple[Side, Side]:
    return side(stores[0], MEASURED), side(stores[1], SIMULATED)


@pytest.fixture(scope="module")
def text(sides: tuple[Side, Side]) -> str:
    return tables(compare(*sides), "measured")


def rows(text: str, first: str) -> list[list[str]]:
    """The body of the table whose head begins with `first`."""
    (block,) = (block for block in text.split("\n\n") if block.startswith(f"| {first} |"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()[2:]]


def test_ratios_of_arms_are_off_as_planted(text: str) -> None:
    assert rows(text, "part") == [
        ["gain", "mps2 / single", "3", "1.04", "29.5 %", "2 of 3", "2 of 3"],
        ["host parallelism", "timesliced2 / single", "3", "1.05", "13.2 %", "2 of 3", "2 of 2"],
        ["kernel overlap", "mps2 / timesliced2", "3", "0.99", "16.8 %", "2 of 3", "2 of 2"],
    ]


def test_intervals_are_by_the_planned_boots(
    tmp_path: Path, stores: tuple[ResultStore, ResultStore], sides: tuple[Side, Side]
) -> None:
    """Without the sweep file they allow for looks, and hold all that is predicted."""
    shutil.copytree(stores[0].uri, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "specs")
    unplanned = side(ResultStore.open(str(tmp_path / "copy"), create=False), MEASURED)
    assert [row[5] for row in rows(pairs_table(compare(unplanned, sides[1]).pairs), "part")] == ["3 of 3"] * 3


def test_one_boot_has_no_interval_and_no_word(
    tmp_path: Path, stores: tuple[ResultStore, ResultStore], sides: tuple[Side, Side]
) -> None:
    trials = stores[0].read("trials").filter(backend=MEASURED, repeat=1, concurrency=64)
    few = ResultStore.open(str(tmp_path), create=True)
    write(few, trials, stores[0].read("windows"))
    text = tables(compare(side(few, MEASURED), sides[1]), "few")
    assert [row[5:] for row in rows(text, "part")] == [["0 of 0", "0 of 0"]] * 3
    assert rows(text, "model | load")[0][6:9] == ["1.649", "-", "1"]


def test_rates_of_arms_are_off_as_planted(text: str) -> None:
    assert rows(text, "model | arm") == [
        ["Qwen2.5-0.5B", "single", "2", "2.00", "0.0 %"],
        ["Qwen2.5-0.5B", "timesliced2", "2", "2.05", "17.7 %"],
        ["Qwen2.5-0.5B", "mps2", "2", "1.90", "35.4 %"],
        ["Qwen2.5-1.5B", "single", "1", "3.00", "-"],
        ["Qwen2.5-1.5B", "timesliced2", "1", "3.32", "-"],
        ["Qwen2.5-1.5B", "mps2", "1", "3.74", "-"],
    ]


def test_cells_have_both_sides_and_a_null_bound_is_unknown(text: str) -> None:
    bounds = ["power", "gpu_compute", "unknown", "gpu_compute"]
    first, second, third = rows(text, "model | load")
    assert first == [
        *("Qwen2.5-0.5B", "mixed, 64 out", "128", "64", "1,000", "2,000"),
        *("1.649", "1.286 to 2.114", "3", "2.014"),
        *bounds,
    ]
    assert second[3:7] == ["128", "1,000", "2,000", "1.350"] and second[9:] == ["1.000", *bounds]
    assert third[0] == "Qwen2.5-1.5B" and third[3:7] == ["192", "1,000", "3,000", "0.607"]


def test_every_table_says_what_is_simulated_and_the_rest_is_counted(text: str) -> None:
    blocks = text.split("\n\n")
    notes = [before for before, block in pairwise(blocks) if block.startswith("|")]
    assert len(notes) == 3
    assert all("SIMULATED" in first and "measured" in first for first in (note.split(". ")[0] for note in notes))
    assert "Cells of `planted` in both: 3." in " ".join(text.split())
    assert "left out: 1 measured only, 2 simulated only." in " ".join(text.split())


def test_an_arm_that_one_side_lacks_has_a_dash(sides: tuple[Side, Side]) -> None:
    measured, simulated = sides
    few = Side(
        simulated.verdicts.filter(arm="timesliced2", concurrency=64),
        simulated.arms.filter(pl.col("arm") != "mps2", concurrency=64),
    )
    text = tables(compare(measured, few), "measured")
    assert [row[0] for row in rows(text, "part")] == ["host parallelism"]
    (shown,) = rows(text, "model | load")
    assert shown[4:] == ["1,000", "2,000", *"----", "power", "gpu_compute", *"--"]


def test_stores_without_the_backend_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="predicted' holds no rows of backend vllm"):
        side(store_of(tmp_path / "predicted", SIMULATED, (1,)), MEASURED)
    with pytest.raises(StoreError, match="recorded' holds no rows of backend simulated"):
        side(store_of(tmp_path / "recorded", MEASURED, (1,)), SIMULATED)
    with pytest.raises(StoreError, match="empty' holds no rows of backend vllm"):
        side(ResultStore.open(str(tmp_path / "empty"), create=True), MEASURED)


@pytest.mark.parametrize("other", [{"sweep": "another"}, {"gpu_kind": "H100"}, {"prompt_tokens": 256}])
def test_stores_without_a_common_cell_are_refused(sides: tuple[Side, Side], other: dict[str, object]) -> None:
    measured, simulated = sides
    changed = {name: pl.lit(value) for name, value in other.items()}
    with pytest.raises(StoreError, match="no cell is in both stores"):
        compare(measured, Side(simulated.verdicts, simulated.arms.with_columns(**changed)))


def test_other_settings_are_refused_but_not_those_of_the_simulation(tmp_path: Path, sides: tuple[Side, Side]) -> None:
    larger = store_of(tmp_path / "larger", SIMULATED, (1,), engine_args='{"max_cudagraph_capture_size": 1024}')
    with pytest.raises(StoreError, match=r"mps2 of planted.* was measured with .* simulated with .*1024"):
        compare(sides[0], side(larger, SIMULATED))
    options = {"engine_args": '{"simulation": {"noise": "none"}}', "weights": "none"}
    quiet = compare(sides[0], side(store_of(tmp_path / "quiet", SIMULATED, (1,), **options), SIMULATED))
    assert quiet.pairs.height == 3 and quiet.arms.height == 3


def test_the_page_changes_between_its_markers_alone() -> None:
    other = "# Title\n<!-- table: other -->\nkept\n<!-- end -->\n"
    page = other + "before\n<!-- table: prediction -->\nold\n<!-- end -->\nafter\n<!-- end -->\n"
    once = with_text(page, "prediction", r"| new \1 |")
    assert once == other + "before\n<!-- table: prediction -->\n\n| new \\1 |\n\n<!-- end -->\nafter\n<!-- end -->\n"
    assert with_text(once, "prediction", r"| new \1 |") == once


@pytest.mark.parametrize(
    "page", ["no markers\n", "<!-- table: other -->\n<!-- end -->\n", "<!-- table: prediction -->\n"]
)
def test_a_page_without_the_markers_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match="table: prediction"):
        with_text(page, "prediction", "new")


def test_the_command_prints_or_writes(
    tmp_path: Path, stores: tuple[ResultStore, ResultStore], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [store.uri for store in stores]
    assert main(asked) == 0
    assert capsys.readouterr().out == text + "\n"
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: prediction -->\nold\n<!-- end -->\nafter\n")
    assert main([*asked, "--page", str(page)]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    assert page.read_text() == f"before\n<!-- table: prediction -->\n\n{text}\n\n<!-- end -->\nafter\n"


def test_the_command_says_what_is_wrong(
    tmp_path: Path, stores: tuple[ResultStore, ResultStore], capsys: pytest.CaptureFixture[str]
) -> None:
    measured, simulated = (store.uri for store in stores)
    page = tmp_path / "page.md"
    page.write_text("no markers\n")
    for asked, said in (
        ([measured, simulated, "--page", str(page)], "page.md: no `<!-- table: prediction -->`"),
        ([measured, simulated, "--page", str(tmp_path / "none.md")], "none.md"),
        ([measured, str(tmp_path / "nowhere")], "nowhere"),
        ([ResultStore.open(str(tmp_path / "empty"), create=True).uri, simulated], "no rows of backend vllm"),
    ):
        assert main(asked) == 2
        assert said in capsys.readouterr().err
    assert page.read_text() == "no markers\n"
