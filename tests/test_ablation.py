"""Halves of a model with the truth planted: times by part, shares, expected gains, and the claims about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import polars as pl
import pytest

from dashboards.ablation import ATTENTION, MLP, SERVED, SWEEPS, Estimate, ablations, expected
from dashboards.ablation_claims import EXPONENTS, ablation_findings, achieved_share
from dashboards.ablation_tables import ablation_table, part_table, resource_table
from dashboards.claim_cells import Cell, planned
from dashboards.claim_rules import Finding
from dashboards.half_figures import halves_gain, step_bars
from dashboards.step_parts import BETWEEN, by_half, half_of, part_order, step_parts
from orchestrator.gpus import KINDS
from orchestrator.records import SAMPLES, TRIALS, WINDOWS
from tests.test_claims import _filled, changed, verdicts
from workloads.catalogue import load_model
from workloads.variants import split

H200 = KINDS["H200"]
STEP_TOKENS = 8192
Seconds = Callable[[Cell], dict[str, float]]


def tokens_of(cell: Cell) -> tuple[int, int]:
    """Tokens and sequences of a full step."""
    return (cell.concurrency,) * 2 if cell.kind == "decode-replay" else (STEP_TOKENS, STEP_TOKENS // cell.prompt_tokens)


def arithmetic(cell: Cell, reached: float = 0.8) -> dict[str, float]:
    """Times as the catalogue has it, at one share of the peak: of compute in prefill, of bandwidth in decode."""
    prefill = cell.kind == "prefill-replay"
    work = load_model(cell.model).layer_resources(
        "prefill" if prefill else "decode", cell.prompt_tokens, tokens_of(cell)[1]
    )
    peak, column = (H200.bf16_flops_per_s, 0) if prefill else (H200.memory_bytes_per_s, 1)
    attention, mlp = (work[name][column] / peak / reached for name in ("attention", "mlp"))
    return {
        "attention": attention, "qkv_proj": 0.4 * mlp - 0.5 * attention, "o_proj": 0.6 * mlp - 0.5 * attention,
        "gate_up_proj": 0.7 * mlp, "down_proj": 0.3 * mlp, "lm_head": 0.1 * mlp,
    }  # fmt: skip


def profiled(seconds: Seconds = arithmetic, boots: int = 3, gap: float = 0.02) -> pl.DataFrame:
    """`step_parts` of every full cell of both sweeps. Boots scatter by 0.1 %, windows of a boot by nothing."""
    trials, samples = [], []
    for phase, sweep in SWEEPS.items():
        for number, cell in enumerate(cell for cell in planned(sweep) if split(cell.model)[1] is None):
            for boot in range(boots):
                name = f"{phase} {number} {boot}"
                trials.append(
                    {key: getattr(cell, key) for key in ("model", "kind", "prompt_tokens", "output_tokens")}
                    | {"concurrency": cell.concurrency, "sweep": sweep, "gpu_kind": "H200", "outcome": "ok"}
                    | {"trial_id": name, "attempt_id": "a", "arm": "single", "sharing": "single"}
                )
                parts = {part: value * (1 + 0.001 * (boot - 1)) for part, value in seconds(cell).items()}
                step_s = sum(parts.values()) * (1 + gap)
                tokens, sequences = tokens_of(cell)
                facts = {"step_s": step_s, "tokens": tokens, "sequences": sequences}
                for window in range(2):
                    rows = [("step", fact, value) for fact, value in facts.items()]
                    rows += [("part", f"{part}_s", value) for part, value in parts.items()]
                    samples += [
                        {"trial_id": name, "attempt_id": "a", "window_index": window, "time_ns": 1}
                        | {"source": f"engine0.{what}", "metric": metric, "value": float(value)}
                        for what, metric, value in rows
                    ]
    names = [trial["trial_id"] for trial in trials]
    seen = [{"trial_id": name, "attempt_id": "a", "window_index": index, "certified": True}
            for name in names for index in range(2)]  # fmt: skip
    # One more that is not certified, in which a part took ever so long.
    seen += [{**window, "window_index": 2, "certified": False} for window in seen[::2]]
    odd = {"attempt_id": "a", "window_index": 2, "time_ns": 1, "source": "engine0.part", "metric": "attention_s"}
    samples += [{"trial_id": name, **odd, "value": 99.0} for name in names]
    return step_parts(
        _filled(pl.DataFrame(trials), TRIALS),
        _filled(pl.DataFrame(seen), WINDOWS),
        pl.DataFrame(samples).cast(dict(SAMPLES)),
    )  # type: ignore[arg-type]


def attention_gain(cell: Cell) -> float:
    """Falls linearly in decode, and in prefill faster."""
    context = cell.prompt_tokens
    return 2.4 - context / 5000 if cell.kind.startswith("decode") else 2.4 - 0.25 * (context.bit_length() - 8)


def half_gain(cell: Cell) -> float:
    return attention_gain(cell) if split(cell.model)[1] == ATTENTION else 1.0


def as_claimed(cell: Cell) -> float:
    """Halves as above; the whole gains a little less than they lead one to expect in decode, much less in prefill."""
    if split(cell.model)[1] is not None:
        return half_gain(cell)
    whole = 0.5 * attention_gain(cell) + 0.5 * 1.0
    return whole / (1.05 if cell.kind.startswith("decode") else 1.3)


def gains(gain: Callable[[Cell], float] = as_claimed, half: float = 0.005) -> pl.DataFrame:
    return pl.concat([verdicts(sweep, gain, half=half) for sweep in SWEEPS.values()])


def finding(number: str, rows: pl.DataFrame, parts: pl.DataFrame | None = None) -> Finding:
    return ablation_findings(rows, profiled() if parts is None else parts)[number][1]


def test_halves_of_a_step() -> None:
    assert half_of("attention") == half_of("qkv_proj|o_proj") == "attention"
    assert half_of("gate_up_proj") == "mlp"
    assert half_of("o_proj|down_proj") == half_of("lm_head") == half_of("elementwise") == "rest"
    assert part_order({BETWEEN, "lm_head", "down_proj", "attention"}) == ["attention", "down_proj", "lm_head", BETWEEN]


def test_parts_and_the_time_between_kernels_add_up_to_the_step() -> None:
    parts = profiled(gap=0.04)
    sums = parts.group_by("trial_id").agg(pl.col("seconds").sum(), pl.col("step_s").first())
    assert (sums["seconds"] - sums["step_s"]).abs().max() < 1e-12  # type: ignore[operator]
    between = parts.filter(part=BETWEEN)
    assert (between["seconds"] / between["step_s"] - (1 - 1 / 1.04)).abs().max() < 1e-9  # type: ignore[operator]
    halves = by_half(parts)
    assert halves.height == 4 * sums.height
    wide = halves.pivot("half", index="trial_id", values="seconds")
    assert (wide["attention"] / wide["mlp"] - 1).abs().max() < 1e-9  # type: ignore[operator]


def test_nothing_profiled_is_no_rows_with_the_same_columns() -> None:
    nothing = step_parts(TRIALS.to_frame(), WINDOWS.to_frame(), SAMPLES.to_frame())
    assert nothing.is_empty() and nothing.columns == profiled().columns
    assert part_table(nothing) == resource_table(nothing) == "Not measured yet."
    assert step_bars(nothing).layout.annotations


def test_an_arm_of_several_engines_is_not_profiled() -> None:
    trial = {
        "trial_id": "t",
        "attempt_id": "a",
        "sharing": "mps",
        "outcome": "ok",
        "model": "m",
        "kind": "decode-replay",
    }
    rows = [{"trial_id": "t", "attempt_id": "a", "source": "engine0.step", "metric": name, "value": 1.0}
            for name in ("step_s", "tokens", "sequences")]  # fmt: skip
    window = {"trial_id": "t", "attempt_id": "a", "window_index": 0, "certified": True}
    tables = _filled(pl.DataFrame([trial]), TRIALS), _filled(pl.DataFrame([window]), WINDOWS)
    assert step_parts(*tables, _filled(pl.DataFrame([{**row, "window_index": 0} for row in rows]), SAMPLES)).is_empty()


def test_expected_gains() -> None:
    exact = [Estimate(value, 0.0) for value in (0.25, 2.0, 1.0)]
    weighted, times = expected(*exact)
    assert (weighted.value, weighted.half) == (1.25, 0.0)
    assert times.value == pytest.approx(1 / (0.25 / 2 + 0.75)) and times.half == 0.0
    # By small changes of each, one at a time.
    for index, half in enumerate((0.01, 0.02, 0.03)):
        loose = [replace(each, half=half) if at == index else each for at, each in enumerate(exact)]
        moved = [
            replace(each, value=each.value + half / 1000) if at == index else each for at, each in enumerate(exact)
        ]
        for estimate, shifted in zip(expected(*loose), expected(*moved), strict=True):
            before = weighted if shifted is expected(*moved)[0] or estimate.value == weighted.value else times
            assert estimate.half == pytest.approx(1000 * abs(shifted.value - before.value), rel=1e-3)
    every = expected(*(replace(each, half=half) for each, half in zip(exact, (0.01, 0.02, 0.03), strict=True)))[0]
    assert every.half == pytest.approx((0.01**2 + (0.25 * 0.02) ** 2 + (0.75 * 0.03) ** 2) ** 0.5)


def test_as_times_compose_is_never_above_the_weighted_mean() -> None:
    for share in (0.0, 0.2, 0.9, 1.0):
        for attention in (0.5, 1.0, 3.0):
            weighted, times = expected(Estimate(share, 0.1), Estimate(attention, 0.1), Estimate(1.2, 0.1))
            assert times.value <= weighted.value + 1e-12


def test_a_profile_with_more_than_the_step_in_it_is_left_out() -> None:
    within, beyond = profiled(gap=-0.04), profiled(gap=-0.06)
    assert within.filter(part=BETWEEN)["seconds"].max() < 0  # type: ignore[operator]
    assert beyond.is_empty() and beyond.schema == within.schema


def test_the_claims_hold_where_they_are_planted() -> None:
    found = ablation_findings(gains(), profiled())
    assert {number: each.holds for number, (_, each) in found.items()} == dict.fromkeys(("C7", "C8", "C9", "C10"), True)
    assert all(not each.why for _, each in found.values())
    assert "exponent 1.0" in found["C7"][1].figures and "2 by the arithmetic" in found["C7"][1].figures


def test_without_measurements_they_are_open() -> None:
    nothing = gains().clear()
    for number, (_, each) in ablation_findings(nothing, profiled().clear()).items():
        assert each.holds is None, number
        assert each.why


def test_c7_wants_the_exponent_of_the_kernels_that_the_resource_binds() -> None:
    def flat(cell: Cell) -> dict[str, float]:
        """Attention takes as long in every context: a token of it costs the same, so a prompt is linear, not square."""
        attention = arithmetic(replace(cell, prompt_tokens=1024))["attention"]
        return arithmetic(cell) | {"attention": attention, "qkv_proj": attention, "o_proj": attention}

    against = finding("C7", gains(), profiled(flat))
    assert against.holds is False
    seen = {"prefill": "1.00", "decode": "0.00"}
    sizes = ("0.5B", "1.5B", "3B")
    wrong = [f"attention in {phase} at {size}: exponent {value}" for phase, value in seen.items() for size in sizes]
    assert list(against.why) == wrong
    # Kernels at a tenth of the peak say nothing about the resource.
    slow = finding("C7", gains(), profiled(lambda cell: arithmetic(cell, reached=0.1)))
    assert slow.holds is None and slow.why[0] == (
        "mlp in prefill at 0.5B: bound by compute in 0 of 5 contexts profiled, 3 wanted"
    )


def test_the_share_of_the_peak_is_that_of_the_arithmetic() -> None:
    for phase, resource in (("prefill", "compute"), ("decode", "bandwidth")):
        cell = next(cell for cell in planned(SWEEPS[phase]) if split(cell.model)[1] is None)
        times = arithmetic(cell, reached=0.37)
        seconds = {"attention": times["attention"], "mlp": times["gate_up_proj"] + times["down_proj"]}
        for half, spent in seconds.items():
            tokens, _ = tokens_of(cell)
            assert achieved_share(cell, "H200", half, resource, tokens, spent) == pytest.approx(0.37)


def test_c8_is_about_the_mlp_of_the_smallest_and_of_3b() -> None:
    assert finding("C8", changed(gains(), "0.5B:mlp-only", 128, ratio=1.4, ci_low=1.35, ci_high=1.45)).holds is False
    assert finding("C8", changed(gains(), "0.5B:mlp-only", 128, ratio=1.3, ci_low=1.25, ci_high=1.35)).holds is None
    assert finding("C8", changed(gains(), "3B:mlp-only", 512, ratio=1.1, ci_low=1.05, ci_high=1.15)).holds is False
    assert finding("C8", changed(gains(), "3B:mlp-only", 512, ratio=0.8, ci_low=0.7, ci_high=0.9)).holds is True
    # At 128 tokens the claim says nothing of 3B, and nowhere of 1.5B.
    assert finding("C8", changed(gains(), "3B:mlp-only", 128, ratio=1.2, ci_low=1.1, ci_high=1.3)).holds is True
    assert finding("C8", changed(gains(), "1.5B:mlp-only", 512, ratio=2.0, ci_low=1.9, ci_high=2.1)).holds is True


def test_c9_wants_more_than_the_full_model_everywhere() -> None:
    little = changed(gains(), "3B:attention-only", 1024, ratio=1.5, ci_low=1.495, ci_high=1.505)
    against = finding("C9", little)  # the full model gains 1.52 there in decode
    assert against.holds is False and "decode replayed at 1024: 0.986" in against.why[0]
    assert finding("C9", changed(gains(), "3B:attention-only", 1024, boots=2)).holds is None


@pytest.mark.parametrize(
    ("decode", "prefill", "holds"),
    [
        (lambda n: 2.4 - n / 5000, lambda n: 2.4 - 0.25 * (n.bit_length() - 8), True),
        (lambda n: 2.4 - 0.1 * (n.bit_length() - 8), lambda n: 2.6 - 0.25 * (n.bit_length() - 8), False),  # log-linear
        (lambda n: 1.5 + n / 5000, lambda n: 2.4 - 0.25 * (n.bit_length() - 8), False),  # rises
        (lambda n: 2.6 - n / 3000, lambda n: 2.4 - 0.02 * (n.bit_length() - 8), False),  # less steep in prefill
    ],
    ids=["as claimed", "log-linear in decode", "rises in decode", "less steep in prefill"],
)
def test_c9_wants_shapes(decode: Callable[[int], float], prefill: Callable[[int], float], holds: bool) -> None:
    def gain(cell: Cell) -> float:
        if split(cell.model)[1] != ATTENTION:
            return 1.0
        return (decode if cell.kind.startswith("decode") else prefill)(cell.prompt_tokens)

    assert finding("C9", gains(gain)).holds is holds


@pytest.mark.parametrize(
    ("decode", "prefill", "holds"),
    [
        (1.05, 1.3, True),
        (0.95, 1.3, False),
        (1.2, 1.3, False),
        (1.05, 1.02, False),
        (1.1, 1.3, None),
        (1.05, 1.1, None),
    ],
)
def test_c10_holds_expected_against_actual(decode: float, prefill: float, holds: bool | None) -> None:
    def gain(cell: Cell) -> float:
        if split(cell.model)[1] is not None:
            return half_gain(cell)
        return (0.5 * attention_gain(cell) + 0.5) / (decode if cell.kind.startswith("decode") else prefill)

    assert finding("C10", gains(gain)).holds is holds


def test_c10_needs_the_profile_in_three_boots() -> None:
    found = finding("C10", gains(), profiled(boots=2))
    assert found.holds is None and any("profiled in 2 of 3 boots" in clause for clause in found.why)


def test_cells_as_served_are_told_beside_and_decide_nothing() -> None:
    served = pl.concat([verdicts(sweep, lambda cell: 1.0) for sweep in SERVED.values()])
    found = ablation_findings(pl.concat([gains(), served]), profiled())
    assert found["C9"][1].holds is True
    assert "As served, with the host in the path, the rule does not" in found["C9"][1].figures


def test_tables_and_figures_say_what_was_planted() -> None:
    rows, parts = gains(), profiled()
    (first, *_) = ablations(rows, parts, "decode")
    assert first.cell.size == "0.5B" and first.share.value == pytest.approx(0.5)
    lines = ablation_table(rows, parts).splitlines()
    assert len(lines) == 2 + 2 * 3 * 5
    (line,) = (line for line in lines if line.startswith("| decode | 3B | 1024 | 64 |"))
    cell = next(c for c in planned(SWEEPS["decode"]) if c.model.endswith("3B") and c.prompt_tokens == 1024)
    shown = [float(field.split()[0]) for field in line.split("|")[5:12]]
    whole = as_claimed(cell)
    assert shown[:4] == pytest.approx([whole, attention_gain(cell), 1.0, 0.5], abs=1e-3)
    assert shown[4] == pytest.approx(1.05 * whole, abs=2e-3) and shown[6] == pytest.approx(1.05, abs=2e-3)
    (line,) = (
        line for line in part_table(parts).splitlines() if line.startswith("| decode-replay | Qwen2.5-3B | 1024 |")
    )
    shares = [float(field.split()[0]) for field in line.split("|")[5:-1]]
    assert sum(shares) == pytest.approx(100, abs=0.4) and shares[-1] == pytest.approx(100 * 0.02 / 1.02, abs=0.1)
    lines = resource_table(parts).splitlines()
    assert len(lines) == 2 + 2 * 3 * 5 * 2
    assert all(line.endswith("| 80 % |") for line in lines[2:] if line.startswith("| decode-replay"))
    assert all(line.split("|")[-3].strip() == "80 %" for line in lines[2:] if line.startswith("| prefill-replay"))
    scene = rows.filter(pl.col("model").str.contains("3B"), sweep=SWEEPS["decode"])
    assert [trace.name for trace in halves_gain(scene).data] == ["full model", ATTENTION, MLP]
    fig = step_bars(parts.filter(sweep=SWEEPS["decode"], model="Qwen/Qwen2.5-3B"))
    total_ms = sum(trace.y[2] for trace in fig.data)
    assert total_ms == pytest.approx(1000 * 1.02 * sum(arithmetic(cell).values()), rel=1e-3)
    assert [trace.name for trace in fig.data][-1] == BETWEEN


def test_every_exponent_is_of_a_kind_that_is_measured() -> None:
    assert {phase for _, phase in EXPONENTS} == set(SWEEPS)
