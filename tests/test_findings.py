"""The committed findings are what the committed record says; thinning keeps what verdicts rest on."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from dashboards import picture
from dashboards.agreement import agreement
from dashboards.findings import main as write_findings
from dashboards.findings import page
from dashboards.findings_tables import planned_verdicts
from dashboards.gains_by_settings import gains_by_settings, settings_means
from dashboards.settings_picture import settings_picture
from dashboards.tuning import chosen
from orchestrator.account import read_accounts
from orchestrator.quarantine import Quarantine, quarantined
from orchestrator.records import TABLES
from orchestrator.spec import SWEEPS, load_spec
from orchestrator.store import ResultStore
from orchestrator.thin import main as thin
from orchestrator.verdicts import judge

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "reference" / "h200"
AGAIN = ROOT / "reference" / "h200-pair"
UNTUNED = ROOT / "reference" / "h200-untuned"
PIECES = ROOT / "reference" / "h200-pieces"
KILLS = ROOT / "reference" / "kills-h200.json"
SPEEDS = ROOT / "reference" / "core-speeds-h200.parquet"


def test_the_page_is_what_the_record_says():
    store, again, *earlier = (ResultStore.open(str(path), create=False) for path in (RECORD, AGAIN, UNTUNED, PIECES))
    made = page(store, "reference/h200", again, earlier, SPEEDS, KILLS) + "\n"
    assert made == (ROOT / "docs" / "findings.md").read_text()


@pytest.mark.parametrize("record", [RECORD, AGAIN, UNTUNED, PIECES], ids=["record", "again", "untuned", "pieces"])
def test_the_record_is_measured_whole_and_small(record):
    store = ResultStore.open(str(record), create=False)
    trials, windows = store.read("trials"), store.read("windows")
    assert store.faults == []
    assert set(trials["backend"]) == {"vllm"}
    assert windows.height > 0 and windows["certified"].all()
    size = sum(path.stat().st_size for path in (ROOT / "reference").rglob("*") if path.is_file())
    assert size < 12 * 2**20


@pytest.mark.parametrize("record", [RECORD, AGAIN, UNTUNED, PIECES], ids=["record", "again", "untuned", "pieces"])
def test_attachment_is_in_every_certificate_of_the_record(record):
    store = ResultStore.open(str(record), create=False)
    windows = store.read("windows").join(store.read("trials").select("trial_id", "sharing"), on="trial_id")
    proof = windows.with_columns(
        ok=pl.col("certificate").str.json_path_match("$.attachment.ok"),
        saw=pl.col("certificate").str.json_path_match("$.attachment.saw"),
    )
    assert set(proof["ok"]) == {"true"}
    inside = proof.filter(pl.col("sharing") == "mps")["saw"]
    outside = proof.filter(pl.col("sharing") != "mps")["saw"]
    assert inside.len() > 0 and inside.str.contains("are MPS clients").all()
    assert outside.len() > 0 and outside.str.contains("outside MPS").all()


def test_thinning_keeps_all_but_requests(tmp_path, capsys):
    assert thin([str(RECORD), str(tmp_path / "thin"), "--keep-every", "64"]) == 0
    before, after = (ResultStore.open(str(path), create=False) for path in (RECORD, tmp_path / "thin"))
    keys = {"trials": ["trial_id"], "windows": ["trial_id", "window_index"]}
    for table, key in keys.items():
        assert_frame_equal(before.read(table).sort(key), after.read(table).sort(key))
    assert before.read("samples").height == after.read("samples").height
    kept = after.read("requests")
    expected = before.read("requests").filter(pl.col("client") % 64 == 0)
    assert 0 < kept.height == expected.height < before.read("requests").height
    verdicts = [judge(store.read("trials"), store.read("windows")).select("verdict") for store in (before, after)]
    assert_frame_equal(*verdicts)
    assert "repeats copied" in capsys.readouterr().out


def test_thinning_takes_the_notes_along_and_can_be_done_again(tmp_path):
    store = ResultStore.open(str(tmp_path / "full"), create=True)
    thin([str(AGAIN), str(tmp_path / "full")])
    Quarantine("GPU-1", "node", "not clean", 1.0).keep(store, "smoke-gpu")
    for _ in range(2):
        assert thin([str(tmp_path / "full"), str(tmp_path / "thin")]) == 0
    copy = ResultStore.open(str(tmp_path / "thin"), create=False)
    assert quarantined(copy, "smoke-gpu") == quarantined(store, "smoke-gpu") != []
    assert read_accounts(copy, "smoke-gpu").equals(read_accounts(store, "smoke-gpu"))
    assert copy.read("windows").height == store.read("windows").height


def test_thinning_into_a_store_with_other_rows_or_notes_says_so(tmp_path, capsys):
    source = ResultStore.open(str(tmp_path / "full"), create=True)
    thin([str(AGAIN), source.uri])
    Quarantine("GPU-1", "node", "not clean", 1.0).keep(source, "smoke-gpu")
    (note,) = source.objects.listing("quarantine")
    other = ResultStore.open(str(tmp_path / "other note"), create=True)
    other.objects.create(note.path, b"{}")
    assert thin([source.uri, other.uri]) == 2
    assert f"{note.path} is there already" in capsys.readouterr().err

    other = ResultStore.open(str(tmp_path / "other attempt"), create=True)
    (repeat_id, commit), *_ = sorted(source.committed("smoke-gpu").items())
    trials = source.read("trials", "smoke-gpu").filter(pl.col("repeat_id") == repeat_id)
    other.write_repeat(
        "smoke-gpu", repeat_id, "another", {"trials": trials.with_columns(attempt_id=pl.lit("another"))}, 1
    )
    assert commit.generation == 1
    assert thin([source.uri, other.uri]) == 2
    assert f"another attempt at repeat {repeat_id}" in capsys.readouterr().err


def test_the_figures_of_the_readme_stand_in_the_record():
    store = ResultStore.open(str(RECORD), create=False)
    verdicts = judge(store.read("trials"), store.read("windows"), planned_boots=3).filter(
        pl.col("sweep").is_in(["smoke-gpu", "controls"]), metric="throughput", baseline="single"
    )
    (three,) = verdicts.filter(sweep="controls", model="Qwen/Qwen2.5-3B", kind="mixed", arm="mps2").iter_rows(
        named=True
    )
    verdicts = verdicts.filter(sweep="smoke-gpu")
    text = " ".join((ROOT / "README.md").read_text().split())
    rows = {(row["model"].split("-")[-1], row["kind"], row["arm"]): row for row in verdicts.iter_rows(named=True)}
    for model in ("0.5B", "1.5B"):
        mps, sliced = rows[model, "mixed", "mps2"], rows[model, "mixed", "timesliced2"]
        assert (mps["verdict"], sliced["verdict"]) == ("wins", "wins")
        assert "{ratio:.2f} times ({ci_low:.2f} to {ci_high:.2f})".format(**mps) in text
        assert "{ratio:.2f} times ({ci_low:.2f} to {ci_high:.2f})".format(**sliced) in text
    assert three["verdict"] == "loses"
    assert "{ratio:.3f} times ({ci_low:.3f} to {ci_high:.3f})".format(**three) in text
    mps, sliced = rows["1.5B", "prefill", "mps2"], rows["1.5B", "prefill", "timesliced2"]
    assert (mps["verdict"], sliced["verdict"]) == ("tie", "loses")
    assert "{ratio:.3f} times ({ci_low:.3f} to {ci_high:.3f})".format(**mps) in text
    assert "{ratio:.3f} times ({ci_low:.3f} to {ci_high:.3f})".format(**sliced) in text


def test_the_landscapes_take_the_settings_that_were_chosen():
    choice = chosen(planned_verdicts(ResultStore.open(str(RECORD), create=False)))
    assert choice is not None
    tuned = load_spec(SWEEPS / f"{choice.stage}.yaml")
    settings = {**tuned.engine_args, **tuned.arms[choice.best].engine_args}
    files = [
        *("scaling-landscape", "prefill-landscape", "plateau", "mps-control", "sustained", "async-scheduling"),
        *("tokenisation", "images", "more-engines", "sm-shares", "ablation-decode", "ablation-prefill"),
    ]
    for name in files:
        assert load_spec(SWEEPS / f"{name}.yaml").engine_args == settings, name


def test_the_readme_s_picture_and_words_of_the_landscape_are_the_record_s():
    store = ResultStore.open(str(RECORD), create=False)
    sweep = "scaling-landscape"
    rows = picture.chosen(judge(store.read("trials", sweep), store.read("windows", sweep)), "mps2")
    assert (ROOT / "docs" / "landscape.svg").read_text() == picture.picture(rows)
    text = " ".join((ROOT / "README.md").read_text().split())
    assert set(rows["boots"].drop_nulls()) == {1} and "one boot a cell" in text
    size, context = pl.col("model").str.extract(r"-([\d.]+B)$"), pl.col("prompt_tokens")

    def span(of: pl.Expr, baseline: str = "single") -> tuple[str, str]:
        ratios = planned_verdicts(store).filter(of, sweep=sweep, arm="mps2", baseline=baseline)["ratio"]
        return f"{ratios.min():.2f}", f"{ratios.max():.2f}"

    wins = span((size == "0.5B") & (context <= 512))
    assert "{} to {} times for 0.5B with prompts of up to 512 tokens".format(*wins) in text
    assert "{} and {} times for 1.5B with 128 and 256".format(*span((size == "1.5B") & (context <= 256))) in text
    assert "{} to {} times for 0.5B with longer ones".format(*span((size == "0.5B") & (context > 512))) in text
    loses = span(((size == "1.5B") & (context >= 512)) | (size == "3B"))
    assert "{} to {} times, a loss, for 1.5B from 512 tokens on and for 3B".format(*loses) in text
    assert "Against time slices MPS gives {} to {} times.".format(*span(pl.lit(True), "timesliced2")) in text


def test_what_the_readme_says_of_gains_and_settings_stands_in_the_records():
    text = " ".join((ROOT / "README.md").read_text().split())
    rows = gains_by_settings([ResultStore.open(str(path), create=False) for path in (UNTUNED, PIECES, RECORD)])
    assert (ROOT / "docs" / "settings.svg").read_text() == settings_picture(rows.filter(pl.col("order") != 1))
    means = settings_means(rows)
    before, pieces, whole = means.iter_rows(named=True)
    assert f"give {before['gain']:.2f} times the throughput of one, as a geometric mean over {before['cells']}" in text
    assert f"they give {pieces['gain']:.2f} times, and one engine {pieces['single']:.2f} times what it gave" in text
    assert f"in pieces): {whole['gain']:.2f} times, and one engine gives {whole['single']:.2f} times what" in text
    later = rows.filter(pl.col("order") > 0)
    assert set(later["boots"]) == {1} and set(later["verdict"]) == {"undecided"}
    largest = rows.filter(order=2).sort("ratio").row(-1, named=True)
    assert f"one engine ran at {largest['speed_single']:.0f} million" in text
    assert f"those of the two at {largest['speed_mps2']:.0f}: part" in text
    tuned = planned_verdicts(ResultStore.open(str(RECORD), create=False)).filter(sweep="tune-graphs", arm="full-dense")
    told = f"one engine {tuned['ratio'].min():.2f} to {tuned['ratio'].max():.2f} times what graphs in pieces gave"
    assert told in text and tuned.height == 6
    assert tuned["boots"].is_between(1, 2).all() and set(tuned["verdict"]) == {"undecided"}


def test_what_the_readme_says_of_replayed_steps_stands_in_the_record():
    text = " ".join((ROOT / "README.md").read_text().split())
    verdicts = planned_verdicts(ResultStore.open(str(RECORD), create=False))
    replayed = verdicts.filter(pl.col("sweep").str.ends_with("-replay"), arm="mps2", model="Qwen/Qwen2.5-3B")
    assert replayed["boots"].is_between(1, 2).all()
    spans = {
        (kind, baseline): [f"{value:.2f}" for value in (rows["ratio"].min(), rows["ratio"].max())]
        for (kind, baseline), rows in replayed.group_by("kind", "baseline")
    }
    assert "{} to {} times the decode work".format(*spans["decode-replay", "single"]) in text
    assert "MPS gives {} to {} times".format(*spans["decode-replay", "timesliced2"]) in text
    assert spans["prefill-replay", "single"] == ["1.00"] * 2 and spans["prefill-replay", "timesliced2"] == ["1.07"] * 2


def test_the_recorded_storm_lost_nothing_and_is_what_the_docs_say():
    storm = json.loads((ROOT / "reference" / "storm.json").read_text())
    assert storm["sound"] and storm["rows"] == storm["trials"] == storm["outcomes"]["ok"] and not storm["strays"]
    text = " ".join((ROOT / "docs" / "fleet.md").read_text().split())
    kills = "{host} hosts, {raylet} raylets, {node} nodes and {driver} drivers".format(**storm["kills"])
    told = f"{kills} in {storm['seconds']:.0f} s over {storm['sweeps']} sweeps"
    assert told in text and sum(storm["kills"].values()) == 300
    assert f"each of their {storm['trials']:,} trials is there once" in text
    assert f"{storm['lost_attempts']} lost attempts are on record" in text
    assert f"no repeat took more than {storm['most_attempts']} attempts" in text


def test_no_store_is_said(tmp_path, capsys):
    nowhere = str(tmp_path / "nowhere")
    assert write_findings([nowhere, "--again", str(AGAIN), "--earlier", str(UNTUNED)]) == 2
    assert "no store" in capsys.readouterr().err


@pytest.mark.parametrize("table", sorted(TABLES))
def test_every_table_reads(table):
    assert ResultStore.open(str(RECORD), create=False).read(table).height > 0


def test_no_verdict_turned_when_the_sweep_was_run_again():
    again = ResultStore.open(str(AGAIN), create=False)
    (sweep,) = again.sweeps()
    both = agreement(
        planned_verdicts(ResultStore.open(str(RECORD), create=False)).filter(sweep=sweep), planned_verdicts(again)
    )
    turned = both.filter(pl.col("verdict_a") != pl.col("verdict_b"))
    assert both.height == 12 and (turned["verdict_a"].eq("undecided") | turned["verdict_b"].eq("undecided")).all()
