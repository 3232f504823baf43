"""A block on real engines: resident arms, interleaved windows, certificates, and nothing left behind."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from orchestrator.certificate import certify, planned_for
from orchestrator.deployment import EngineDeployment
from orchestrator.observation import WindowOrder
from orchestrator.plan import Block
from orchestrator.process import ProcessIdentity, carrying, descendants, wait_gone
from orchestrator.runner import BlockContext, DoneRepeat, run_block
from orchestrator.trial import Workload
from tests.engine.conftest import DECODE, ENGINE_ARGS, PAIR, SINGLE, block_of

ROOT = Path(__file__).parent.parent.parent
MIXED = Workload("mixed", 64, 16)
MARK = "MPSCAPE_TEST_MARK"
GONE_LIMIT_S = 60.0


@pytest.fixture(scope="module")
def done(deployment: EngineDeployment, model: Path) -> DoneRepeat:
    """One repeat of two interleaved arms, all the way to its rows."""
    block = block_of(model, MIXED, (SINGLE, PAIR))
    (done,) = run_block(block, lambda *_: nullcontext(deployment), BlockContext("cpu", "spec"))
    return done


def test_every_window_is_certified(done: DoneRepeat) -> None:
    windows = done.frames["windows"]
    assert windows["certificate_failures"].explode().drop_nulls().to_list() == []
    assert windows["certified"].all() and windows.height == 4
    assert [(summary.arm, summary.outcome) for summary in done.summaries] == [("single", "ok"), ("timesliced2", "ok")]
    trials = done.frames["trials"]
    assert trials["backend"].unique().to_list() == ["vllm-cpu"]
    assert trials["weights"].unique().to_list() == ["random"]


def test_arms_take_turns(done: DoneRepeat) -> None:
    windows = done.frames["windows"].sort("order_index").join(
        done.frames["trials"].select("trial_id", "arm"), on="trial_id"
    )  # fmt: skip
    assert sorted(windows["arm"][:2].to_list()) == sorted(windows["arm"][2:].to_list()) == ["single", "timesliced2"]
    checks = [json.loads(text) for text in windows["certificate"]]
    assert {check["idle_arms"]["saw"] for check in checks} == {"0 engine steps in arms that should be idle"}
    assert all((windows["in_flight_mean"] - 8).abs() < 0.8)
    assert (windows["steps"] > 0).all()
    assert windows["steps_eager_share"].to_list() == [1.0] * 4


def test_tokens_of_a_window_are_those_of_its_requests(done: DoneRepeat) -> None:
    """Requests that lie whole in the window bound its tokens from below, those that touch it from above."""
    for window in done.frames["windows"].iter_rows(named=True):
        start, end = window["start_ns"], window["start_ns"] + round(window["duration_s"] * 1e9)
        rows = done.frames["requests"].filter(
            (pl.col("trial_id") == window["trial_id"]) & (pl.col("window_index") == window["window_index"])
        )
        whole = rows.filter(
            (pl.col("first_token_ns") > start) & (pl.col("last_token_ns") <= end) & (pl.col("status") == "ok")
        )
        assert 0 < whole["output_tokens"].sum() <= window["output_tokens"] <= rows["output_tokens"].sum()
        ended = rows.filter(
            (pl.col("status") == "ok") & (pl.col("last_token_ns").is_between(start, end, closed="right"))
        )
        assert ended.height == window["requests_completed"]
        started = rows.filter(pl.col("first_token_ns").is_between(start, end, closed="right"))
        assert 64 * started.height == window["prompt_tokens"]
        assert set(rows["engine"]) == ({0} if rows["client"].n_unique() == 8 else {0, 1})


def test_the_placement_of_floating_engines_is_stored(done: DoneRepeat, deployment: EngineDeployment) -> None:
    for arm in (SINGLE, PAIR):
        placement = deployment.boots[arm.name].placement
        assert placement["pinned"] is False
        assert len(placement["engines"]) == 2  # as many as the largest arm has
        assert set(placement["engines"][0]["core"]) == os.sched_getaffinity(0)
    for text in done.frames["trials"]["placement"]:
        assert json.loads(text)["pinned"] is False


@pytest.mark.parametrize("arm", [SINGLE, PAIR], ids=lambda arm: arm.name)
def test_a_decode_window_has_no_prefill_in_it(arm: object, deployment: EngineDeployment, decode_block: Block) -> None:
    order = WindowOrder(arm, DECODE, concurrency=6, warmup_s=0.3, window_s=1.0, seed=5)  # type: ignore[arg-type]
    seen = deployment.measure(order)
    certificate = certify(order, seen, planned_for(decode_block.repeats[0], deployment.boots[order.arm.name]))
    assert certificate.failures == ()
    assert seen.prompt_tokens == 0 and seen.output_tokens > 0
    assert seen.requests.height == 6
    assert (seen.requests["first_token_ns"] <= seen.start_ns).all()
    assert set(seen.requests["output_tokens_asked"]) == {4096}
    # Each step gives each sequence one token and nothing else.
    for steps in seen.notes["engines"].values():
        assert steps["tokens"] == steps["sequences"] or steps["steps"] == 0


def test_a_decode_window_that_outlasts_its_requests_is_not_certified(
    deployment: EngineDeployment, decode_block: Block
) -> None:
    """The check itself: a mixed window held against a decode order."""
    order = WindowOrder(SINGLE, MIXED, concurrency=4, warmup_s=0.3, window_s=1.0, seed=6)
    seen = deployment.measure(order)
    planned = planned_for(decode_block.repeats[0], deployment.boots["single"])
    failures = certify(replace(order, workload=DECODE), seen, planned).failures
    assert any(line.startswith("decode_only: ") and "ask for more output_tokens" in line for line in failures)


def test_a_prefill_window_counts_prompts(deployment: EngineDeployment, decode_block: Block) -> None:
    order = WindowOrder(SINGLE, Workload("prefill", 256, 1), concurrency=4, warmup_s=0.3, window_s=1.0, seed=7)
    seen = deployment.measure(order)
    assert certify(order, seen, planned_for(decode_block.repeats[0], deployment.boots["single"])).failures == ()
    assert seen.prompt_tokens == 256 * seen.output_tokens > 0


OWNER = """
import sys, json
from pathlib import Path
from orchestrator.deployment import open_deployment
from orchestrator.host import host_nursery, settle_worker
from orchestrator.observation import WindowOrder
from orchestrator.trial import Workload
from tests.engine.conftest import SINGLE, block_of

work = Workload(sys.argv[2], 64, 16)
block = block_of(Path(sys.argv[1]), work, (SINGLE,))
with host_nursery() as births, open_deployment(block, block.arms, settle_worker(), births) as deployment:
    deployment.measure(WindowOrder(SINGLE, work, 4, 0.2, 0.5, 1))
    print("measuring", flush=True)
    deployment.measure(WindowOrder(SINGLE, work, 4, 0.2, 300.0, 2))
"""


@pytest.mark.parametrize("kind", ["decode", "decode-replay"])
def test_an_owner_killed_in_a_window_leaves_nothing(kind: str, model: Path, vllm_cpu: str, tmp_path: Path) -> None:
    """Nor does an EngineCore that replays a step, and hears nothing meanwhile."""
    mark = secrets.token_hex(8)
    environment = {**os.environ, MARK: mark, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    with (tmp_path / "owner.log").open("wb") as log:
        owner = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(model), kind],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=ROOT,
        )
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"measuring\n", (tmp_path / "owner.log").read_text()
        family = carrying(MARK, mark) | descendants([ProcessIdentity.of(owner.pid)])
        assert len(family) >= 5  # owner, nursery, guardian, frontend, EngineCore
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        owner.stdout.close()
    assert not wait_gone(family, GONE_LIMIT_S)
    assert not carrying(MARK, mark)


def test_a_sweep_goes_on_when_an_engine_is_killed(model: Path, vllm_cpu: str, tmp_path: Path) -> None:
    """The command line: the failed repeat is told, tried again on a new set of engines, and the sweep ends with 0."""
    spec = tmp_path / "sweep.yaml"
    args = {name: value for name, value in ENGINE_ARGS.items() if name != "load_format"}
    spec.write_text(
        json.dumps(
            {
                "schema_version": 1,
                "name": "kill-one",
                "question": "what does a sweep do when an engine dies",
                "backend": "vllm-cpu",
                "gpu": "any",
                "weights": "dummy",
                "engine_args": args,
                "arms": {"single": {"sharing": "single", "pinned": False}},
                "workload": {"kind": "mixed", "prompt_tokens": 64, "output_tokens": 16, "concurrency": 4},
                "sweep": {"grid": {"model": [str(model)]}},
                "repeats": 1,
                "measurement": {"window_s": 2.0, "warmup_s": 0.5, "min_windows": 2, "max_windows": 2},
            }
        ),
        encoding="utf-8",
    )
    mark = secrets.token_hex(8)
    temporary = Path(tempfile.mkdtemp(dir="/tmp", prefix="sweep-"))  # Ray's sockets need a short path
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {**inherited, MARK: mark, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
    command = [sys.executable, "-m", "orchestrator.sweep", str(spec), "--store", str(tmp_path / "store")]
    sweep = subprocess.Popen(
        [*command, "--backend", "vllm-cpu"],
        env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        core = stepping_engine(temporary, sweep, mark)
        core.signal(signal.SIGKILL)
        out, told = sweep.communicate(timeout=400)
    finally:
        sweep.kill()
        sweep.wait()
    assert sweep.returncode == 0, told
    answer = json.loads(out.splitlines()[-1])
    assert (answer["ok"], answer["failed"], answer["skipped"]) == (1, 0, 0)
    retried = [line for line in told.splitlines() if " retry " in line]
    assert len(retried) == 1 and "engine single-0 is lost" in retried[0]
    assert not wait_gone(carrying(MARK, mark), GONE_LIMIT_S)


def stepping_engine(folder: Path, sweep: subprocess.Popen[str], mark: str) -> ProcessIdentity:
    """The frontend of the first engine that makes steps: a process below the nursery."""
    while sweep.poll() is None:
        for file in folder.glob("mpscape-*/single-0.steps"):
            if int.from_bytes(file.read_bytes()[:8], sys.byteorder) > 0:
                nurseries = [p for p in carrying(MARK, mark) if "orchestrator.nursery_main" in p.command()]
                parents = {
                    p for p in nurseries if len(descendants([p])) == max(len(descendants([q])) for q in nurseries)
                }
                (nursery,) = parents
                return min(descendants([nursery]), key=lambda process: process.start_ticks)
        try:
            sweep.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
    pytest.fail(f"the sweep ended before any engine made a step: {sweep.communicate()}")
