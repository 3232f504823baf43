"""Whether resident engines of other arms disturb the one that works: an arm among them against the same arm alone.

A repeat with `alone` measures one arm in the boot that its windows among resident engines come from, after the others
have gone, so boots cancel: d_r is the mean log rate among residents less the mean log rate alone, in boot r. Residency
is harmless where the two-sided 95 % interval of the mean of d_r lies within half the tie margin, which is stricter than
two one-sided tests at 5 % (D. J. Schuirmann, J. Pharmacokinetics and Biopharmaceutics 15 (1987) 657-680), and harmful
where it lies outside; anything else is undecided. The sweep fixes the number of boots, so Student's interval needs no
allowance for looks.
"""

from __future__ import annotations

import math

import numpy as np
import polars as pl

from orchestrator.contrast import log_windows, numbered
from orchestrator.sequential import ALPHA
from orchestrator.student import quantile

PLACE = ("sweep", "backend", "gpu_kind", "model", "kind", "prompt_tokens", "output_tokens", "concurrency", "arm")
SCHEMA = {
    "boots": pl.Int64,
    "ratio": pl.Float64,
    "ci_low": pl.Float64,
    "ci_high": pl.Float64,
    "bound": pl.Float64,
    "verdict": pl.String,
}


def residency(trials: pl.DataFrame, windows: pl.DataFrame) -> pl.DataFrame:
    """One row an arm and cell that was measured both ways in one boot: PLACE, boots, ratio of the rate among residents
    over the rate alone, ci_low and ci_high (null for one boot), bound (half the tie margin), verdict (`harmless`,
    `harmful`, `undecided`). Only certified windows count."""
    logs = log_windows(numbered(trials), windows).filter(pl.col("certified"), pl.col("throughput").is_not_null())
    own = numbered(trials).select("trial", *PLACE[:-1], "residency", "tie_margin")
    means = (
        logs.join(own, on="trial")
        .group_by(*PLACE, "boot_id", "residency")
        .agg(pl.col("throughput").mean(), pl.col("tie_margin").first())
    )
    alone = means.filter(residency="alone").drop("residency", "tie_margin")
    both = means.filter(residency="resident").join(alone, on=[*PLACE, "boot_id"], suffix="_alone")
    rows = []
    for place, boots in both.group_by(PLACE):
        contrasts = (boots["throughput"] - boots["throughput_alone"]).to_numpy()
        rows.append((*place, *_judged(contrasts, float(boots["tie_margin"][0]) / 2)))
    schema = {name: trials.schema[name] for name in PLACE} | SCHEMA
    return pl.DataFrame(rows, schema=schema, orient="row").sort(PLACE)


def _judged(contrasts: np.ndarray, bound: float) -> tuple[int, float, float | None, float | None, float, str]:
    count, centre = len(contrasts), float(np.mean(contrasts))
    if count < 2:
        return count, math.exp(centre), None, None, bound, "undecided"
    reach = quantile(1 - ALPHA / 2, count - 1) * float(np.std(contrasts, ddof=1)) / math.sqrt(count)
    low, high = math.exp(centre - reach), math.exp(centre + reach)
    within, outside = 1 - bound <= low and high <= 1 + bound, high < 1 - bound or low > 1 + bound
    verdict = "harmless" if within else "harmful" if outside else "undecided"
    return count, math.exp(centre), low, high, bound, verdict
