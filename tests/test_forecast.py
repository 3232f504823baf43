"""The forecast is all simulated, says so, and stands in its page between its own markers."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from dashboards.forecast import forecast, main
from orchestrator.errors import StoreError
from orchestrator.expand import expand
from orchestrator.gpus import KINDS
from orchestrator.plan import plan
from orchestrator.runner import BlockContext, run_block
from orchestrator.simulated.constants import MODEL_VERSION
from orchestrator.simulated.deployment import open_deployment
from orchestrator.spec import parse_spec
from orchestrator.store import ResultStore

SPEC = """\
schema_version: 1
name: scaling-landscape
question: What is to come?
gpu: H200
arms:
  single: {sharing: single}
  timesliced2: {sharing: timesliced, engines: 2}
  mps2: {sharing: mps, engines: 2}
workload: {kind: mixed, output_tokens: 16}
sweep:
  include:
    - {model: Qwen2.5-0.5B, prompt_tokens: 64, concurrency: 32}
    - {model: Qwen2.5-7B, prompt_tokens: 512, concurrency: 8}
repeats: 3
measurement: {window_s: 0.5, warmup_s: 0.2, min_windows: 2, max_windows: 2}
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ResultStore:
    found = ResultStore.open(str(tmp_path_factory.mktemp("store")), create=True)
    spec = parse_spec(SPEC)
    for block in plan(expand(spec, "simulated"), KINDS["H200"]).blocks:
        for done in run_block(block, open_deployment, BlockContext(spec.name, spec.sha)):
            found.write_repeat(spec.name, done.repeat.repeat_id, done.attempt_id, done.frames, 0)
    found.write_spec(spec.name, spec.sha, spec.text)
    return found


def test_every_cell_has_a_row_and_the_text_says_what_it_is(store: ResultStore) -> None:
    text = forecast(store)
    assert text.startswith("SIMULATED, all of it: `scaling-landscape` on an H200")
    assert f"version {MODEL_VERSION} " in text and "realistic noise" in text
    rows = [line for line in text.splitlines() if line.startswith("| Qwen")]
    assert [row.split(" | ")[:4] for row in rows] == [
        ["| Qwen2.5-0.5B", "mixed, 16 out", "64", "32"],
        ["| Qwen2.5-7B", "mixed, 16 out", "512", "8"],
    ]
    trials = store.read("trials")
    assert set(trials["backend"]) == {"simulated"} and trials.height == 18


def test_a_store_with_a_measured_row_is_no_forecast(store: ResultStore, tmp_path: Path) -> None:
    other = ResultStore.open(str(tmp_path), create=True)
    with pytest.raises(StoreError, match="no forecast: it holds rows of no backend"):
        forecast(other)
    trials = store.read("trials").head(1).with_columns(backend=pl.lit("vllm"))
    row = trials.row(0, named=True)
    other.write_repeat(row["sweep"], row["repeat_id"], row["attempt_id"], {"trials": trials}, 0)
    with pytest.raises(StoreError, match="no forecast: it holds rows of vllm"):
        forecast(other)


def test_the_command_writes_between_the_markers(
    store: ResultStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: forecast -->\nold\n<!-- end -->\nafter\n")
    assert main([store.uri, "--page", str(page)]) == 0
    assert page.read_text() == f"before\n<!-- table: forecast -->\n\n{forecast(store)}\n\n<!-- end -->\nafter\n"
    assert main([store.uri]) == 0
    assert capsys.readouterr().out.endswith(forecast(store) + "\n")
    page.write_text("no markers\n")
    assert main([store.uri, "--page", str(page)]) == 2
    assert "table: forecast" in capsys.readouterr().err and page.read_text() == "no markers\n"
    assert main([str(tmp_path / "nowhere")]) != 0
