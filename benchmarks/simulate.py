"""How fast the simulated GPU is: windows and trials a second, and virtual seconds in one real second.

    python -m benchmarks.simulate [--windows N] [--profile]

One line a model and context, one core, without statistics and storage; the last line is the whole.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time

from benchmarks.rate import Rate, timed
from orchestrator.gpus import KINDS
from orchestrator.observation import WindowOrder
from orchestrator.plan import Block, plan
from orchestrator.simulated.deployment import open_deployment
from orchestrator.trial import Arm, Cell, Measurement, Mps, Repeat, Single, TimeSliced, Workload

MODELS = ("Qwen2.5-0.5B", "Qwen2.5-1.5B", "Qwen2.5-3B", "Qwen2.5-7B")
CONTEXTS = (128, 256, 512, 1024, 2048, 4096)
ARMS = (Arm("single", Single()), Arm("timesliced-2", TimeSliced(2)), Arm("mps-2", Mps(2)))
CONCURRENCY = 128
WARMUP_S, WINDOW_S = 2.0, 4.0


def block_of(model: str, prompt_tokens: int) -> Block:
    """One repeat of one cell on a simulated H200."""
    cell = Cell("H200", model, Workload("mixed", prompt_tokens, 128), CONCURRENCY)
    return plan([Repeat("simulated", cell, ARMS, {}, Measurement(), 0, 0)], KINDS["H200"]).blocks[0]


def measure(block: Block, windows: int) -> tuple[float, list[float]]:
    """Real seconds of `windows` windows of each arm, and the arms' rates over the first arm's in the last round."""
    began = time.perf_counter()
    rates: list[float] = []
    with open_deployment(block, block.arms) as deployment:
        cell = block.repeats[0].cell
        for seed in range(windows):
            rates = [
                deployment.measure(
                    WindowOrder(arm, cell.workload, cell.concurrency, WARMUP_S, WINDOW_S, seed)
                ).output_tokens
                for arm in block.arms
            ]
    return time.perf_counter() - began, [rate / rates[0] for rate in rates]


def run(windows: int) -> None:
    total_s = 0.0
    count = 0
    for model in MODELS:
        for context in CONTEXTS:
            real_s, ratios = measure(block_of(model, context), windows)
            total_s += real_s
            count += windows * len(ARMS)
            virtual_s = windows * len(ARMS) * (WARMUP_S + WINDOW_S)
            per_window_ms = 1e3 * real_s / (windows * len(ARMS))
            shown = " ".join(f"{ratio:.2f}" for ratio in ratios)
            print(
                f"{model:14} {context:5}: {per_window_ms:6.1f} ms a window, x{virtual_s / real_s:6.0f}  ratios {shown}"
            )
    trials = len(MODELS) * len(CONTEXTS) * len(ARMS)
    print(
        f"{count / total_s:.0f} windows/s, {trials / total_s:.1f} trials/s of {windows} windows, "
        f"{count * (WARMUP_S + WINDOW_S) / total_s:.0f} virtual seconds a real second"
    )


def rates(windows: int = 3) -> list[Rate]:
    blocks = [block_of(model, context) for model in MODELS for context in CONTEXTS]
    _, wall_s, cpu_s = timed(lambda: [measure(block, windows) for block in blocks])
    count = windows * len(ARMS) * len(blocks)
    virtual_s = count * (WARMUP_S + WINDOW_S)
    note = f"at least {virtual_s / wall_s:,.0f} virtual seconds a second, one core"
    return [Rate("simulated windows", count, "windows", wall_s, cpu_s, note)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=3, help="windows an arm and cell (default 3)")
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    given = parser.parse_args()
    if not given.profile:
        run(given.windows)
        return
    with cProfile.Profile() as profile:
        run(given.windows)
    pstats.Stats(profile).sort_stats("tottime").print_stats(20)


if __name__ == "__main__":
    main()
