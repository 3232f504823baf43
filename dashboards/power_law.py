"""What the power of a GPU goes into: idle, kernels at all, arithmetic, and bytes moved; from windows of single engines.

    P = idle + a A + f T c^2 + m D

A, T and D are shares: of the window's time in which kernels ran, of the peak FLOP rate at the boost clock at which the
tensor cores worked (their counter times c, the clock over the boost clock), of the peak rate at which memory moved.
Energy a FLOP goes with the square of the voltage, and near the top of its range voltage goes with the clock: c^2. Idle
is the data sheet's. Windows of engines that share a GPU have no part in the fit, and are what it is tried on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from dashboards.findings_tables import table
from orchestrator.gpus import KINDS
from orchestrator.simulated.constants import value

FEWEST_WINDOWS = 8
EXPONENT = 2
TERMS = (
    "kernels that run at all",
    "arithmetic, at the peak FLOP rate and the boost clock",
    "bytes, at the peak rate",
)
COUNTERS = ("gpu_active_share", "tensor_active_share", "dram_active_share", "sm_clock_mhz", "power_w")
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """watts: in the order of TERMS. scatter: standard deviation of the logarithm of law over measured, in the fit.

    exponent: of the clock, in the energy of a FLOP; windows, lowest_mhz, highest_mhz: what it was fitted to.
    """

    gpu_kind: str
    watts: tuple[float, float, float]
    exponent: int
    scatter: float
    windows: int
    lowest_mhz: float
    highest_mhz: float

    def power_w(self, seen: pl.DataFrame) -> Floats:
        """Of rows with COUNTERS."""
        above = _terms(seen, self.gpu_kind, self.exponent) @ np.array(self.watts)
        return np.asarray(above + KINDS[self.gpu_kind].idle_power_w)

    def off(self, seen: pl.DataFrame) -> Floats:
        """The logarithm of the law over the measured power, a value a row."""
        return np.asarray(np.log(self.power_w(seen) / seen["power_w"].to_numpy()))

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


def power_windows(trials: pl.DataFrame, windows: pl.DataFrame) -> pl.DataFrame:
    """Certified windows of real engines with dummy weights on GPUs with a data sheet: COUNTERS, `gpu_kind`, `engines`
    and `sharing`. Tables of `records`."""
    own = trials.filter(
        pl.col("gpu_kind").is_in([*KINDS]), outcome="ok", backend="vllm", weights="dummy"
    ).select("trial_id", "attempt_id", "gpu_kind", "engines", "sharing")  # fmt: skip
    return (
        windows.filter("certified")
        .drop_nulls(COUNTERS)
        .select("trial_id", "attempt_id", *COUNTERS)
        .join(own, on=["trial_id", "attempt_id"])
    )


def power_law(seen: pl.DataFrame, exponent: int = EXPONENT) -> PowerLaw | None:
    """Least squares of relative errors over the windows of single engines of one GPU kind; None where they are too few.

    seen: from `power_windows`.
    """
    single = seen.filter(engines=1, sharing="single")
    if single.height < FEWEST_WINDOWS or single["gpu_kind"].n_unique() != 1:
        return None
    gpu_kind = str(single["gpu_kind"][0])
    above = single["power_w"].to_numpy() - KINDS[gpu_kind].idle_power_w
    design = _terms(single, gpu_kind, exponent) / above[:, None]
    found, _, rank, _ = np.linalg.lstsq(design, np.ones(single.height))
    if rank < len(TERMS):
        return None
    active, flops, moved = map(float, found)
    clocks = single["sm_clock_mhz"].to_numpy()
    law = PowerLaw(
        gpu_kind, (active, flops, moved), exponent, 0.0, single.height, float(clocks.min()), float(clocks.max())
    )
    scatter = float(law.off(single).std())
    return PowerLaw(gpu_kind, law.watts, exponent, scatter, single.height, law.lowest_mhz, law.highest_mhz)


def _terms(seen: pl.DataFrame, gpu_kind: str, exponent: int) -> Floats:
    clock = seen["sm_clock_mhz"].to_numpy() / KINDS[gpu_kind].boost_clock_mhz
    active, tensor, dram = (seen[name].to_numpy() for name in COUNTERS[:3])
    return np.column_stack([active, tensor * clock ** (1 + exponent), dram])


def power_law_table(law: PowerLaw, seen: pl.DataFrame) -> str:
    """The law, how it holds, and how one would whose energy a FLOP is the same at every clock. seen: as of the fit."""
    rows = [("idle, by the data sheet", f"{KINDS[law.gpu_kind].idle_power_w:.0f}")]
    rows += [(words, f"{watts:,.0f}") for words, watts in zip(TERMS, law.watts, strict=True)]
    clocks = f"{law.lowest_mhz:,.0f} to {law.highest_mhz:,.0f} MHz"
    said = [
        f"Fitted to {law.windows} windows of single engines at {clocks}, around which their power scatters by "
        f"{law.scatter:.1%}."
    ]
    if even := power_law(seen, exponent=0):
        said.append(f"Were the energy of a FLOP the same at every clock, it would be {even.scatter:.1%}.")
    for words, sharing in (("under MPS", "mps"), ("in time slices", "timesliced")):
        pairs = seen.filter(pl.col("engines") > 1, sharing=sharing)
        if not pairs.is_empty():
            off = law.off(pairs)
            said.append(
                f"Of engines {words}, {pairs.height} windows that had no part in the fit, the law gives "
                f"{np.exp(off.mean()):.2f} times the power, with a scatter of {off.std():.1%}."
            )
    return f"{table(('what', 'watts'), rows)}\n\n{' '.join(said)}"
