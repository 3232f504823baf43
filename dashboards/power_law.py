"""What the power of a GPU goes into: idle, kernels at all, arithmetic, and bytes moved; from steps that were replayed.

    P = idle + active + f F + m B

F and B are the FLOP and byte rates of a step by the arithmetic of the model catalogue, as shares of the GPU's peaks.
One engine replays one step for seconds, so nothing but the step draws power; idle is the data sheet's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from dashboards.findings_tables import table
from orchestrator.gpus import KINDS
from orchestrator.simulated.constants import value
from orchestrator.simulated.kernels import StepCosts
from workloads.architecture import bytes_per_parameter
from workloads.catalogue import load_model

FEWEST_STEPS = 8
TERMS = ("kernels that run at all", "arithmetic, at the peak FLOP rate", "bytes, at the peak rate")
CELL = ["gpu_kind", "model", "kind", "prompt_tokens", "concurrency"]


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """watts: in the order of TERMS. scatter, largest: relative errors over the kinds of steps."""

    gpu_kind: str
    watts: tuple[float, float, float]
    scatter: float
    largest: float
    steps: int
    lowest_mhz: float
    highest_mhz: float

    @property
    def constants(self) -> dict[str, float]:
        """As the simulated GPU has them (`orchestrator.simulated.constants`): shares of what is above idle, where the
        matmul and the copy that its efficiencies are from would draw them."""
        gpu = KINDS[self.gpu_kind]
        dynamic_w = gpu.power_limit_w - gpu.idle_power_w
        active, flops, moved = (watts / dynamic_w for watts in self.watts)
        return {
            "active_power": active,
            "matmul_power": flops * value("gemm_efficiency"),
            "memory_power": moved * value("copy_efficiency"),
        }


def replayed_power(trials: pl.DataFrame, windows: pl.DataFrame, samples: pl.DataFrame) -> pl.DataFrame:
    """One row a kind of step that one engine replayed on a GPU with a data sheet: CELL, `power_w`, `sm_clock_mhz`,
    `flops` and `bytes` (shares of peak). Certified windows alone; tables of `records`.

    Weights are taken to have 16 bits.
    """
    own = trials.filter(
        pl.col("kind").str.ends_with("-replay"), pl.col("gpu_kind").is_in([*KINDS]), outcome="ok", backend="vllm",
        engines=1, sharing="single",
    ).select("trial_id", "attempt_id", *CELL)  # fmt: skip
    ids = ["trial_id", "attempt_id", "window_index"]
    facts = (
        samples.filter(pl.col("source") == "engine0.step")
        .select(*ids, "metric", "value")
        .pivot(on="metric", index=ids, values="value")
    )
    if own.is_empty() or facts.is_empty():
        return pl.DataFrame()
    seen = (
        windows.filter("certified", pl.col("power_w").is_not_null())
        .select(*ids, "power_w", "sm_clock_mhz")
        .join(own, on=ids[:2])
        .join(facts, on=ids)
        .group_by(CELL)
        .agg(pl.col("power_w", "sm_clock_mhz", "step_s", "tokens", "sequences").mean())
        .sort(CELL)
    )
    rates = [_rates(**row) for row in seen.drop("power_w", "sm_clock_mhz", "concurrency").iter_rows(named=True)]
    return seen.with_columns(pl.DataFrame(rates, schema=["flops", "bytes"], orient="row"))


def _rates(
    gpu_kind: str, model: str, kind: str, prompt_tokens: int, step_s: float, tokens: float, sequences: float
) -> tuple[float, float]:
    gpu, count = KINDS[gpu_kind], round(sequences)
    costs = StepCosts(load_model(model), gpu, gpu.sms, bytes_per_parameter("bfloat16", None))
    if kind.startswith("decode"):
        cost = costs.of(count, count * (prompt_tokens + 1), ())
    else:
        cost = costs.of(0, 0, ((prompt_tokens, 0),) * round(tokens / prompt_tokens))
    return cost.flops / step_s / gpu.bf16_flops_per_s, cost.dram_bytes / step_s / gpu.memory_bytes_per_s


def power_law(steps: pl.DataFrame) -> PowerLaw | None:
    """Least squares of relative errors over `replayed_power` of one GPU kind; None where there are too few."""
    if steps.height < FEWEST_STEPS or steps["gpu_kind"].n_unique() != 1:
        return None
    gpu_kind = str(steps["gpu_kind"][0])
    idle_w = KINDS[gpu_kind].idle_power_w
    drawn = steps["power_w"].to_numpy()
    above = drawn - idle_w
    design = np.column_stack([np.ones(steps.height), steps["flops"].to_numpy(), steps["bytes"].to_numpy()])
    found, _, rank, _ = np.linalg.lstsq(design / above[:, None], np.ones(steps.height))
    if rank < len(TERMS):
        return None
    errors = (design @ found + idle_w) / drawn - 1
    clocks = steps["sm_clock_mhz"]
    active, flops, moved = map(float, found)
    return PowerLaw(
        gpu_kind, (active, flops, moved), float(errors.std()), float(np.abs(errors).max()), steps.height,
        float(clocks.min()), float(clocks.max()),  # type: ignore[arg-type]
    )  # fmt: skip


def power_law_table(law: PowerLaw) -> str:
    rows = [("idle, by the data sheet", f"{KINDS[law.gpu_kind].idle_power_w:.0f}")]
    rows += [(words, f"{watts:.0f}") for words, watts in zip(TERMS, law.watts, strict=True)]
    said = (
        f"With these the power of {law.steps} kinds of steps, at clocks from {law.lowest_mhz:,.0f} to "
        f"{law.highest_mhz:,.0f} MHz, comes out with a scatter of {law.scatter:.1%}, {law.largest:.1%} at most."
    )
    return f"{table(('what', 'watts'), rows)}\n\n{said}"
