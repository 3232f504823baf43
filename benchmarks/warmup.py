"""How far from the long run is a window that begins soon after the clients did? In virtual time, ratios within one run.

    python -m benchmarks.warmup [--seeds 8]

For each cell and arm: the rate of a window of `LATENCIES_A_WINDOW` over the rate of the sixteen latencies that follow,
mean and scatter over seeds, by how long the clients settled after the last of them had its first token; counted as it
is, and tapered. `ramp` is how long that took, in latencies.
"""

from __future__ import annotations

import argparse

import numpy as np

from orchestrator.gpus import KINDS
from orchestrator.runner import LATENCIES_A_WINDOW, LATENCIES_TO_SETTLE
from orchestrator.simulated.constants import value
from orchestrator.simulated.engine import Engine
from orchestrator.simulated.kernels import StepCosts
from orchestrator.simulated.power import PowerCap
from orchestrator.simulated.settings import EngineSettings, HostCosts
from orchestrator.simulated.sharing import Alone, SideBySide, TimeSlices
from orchestrator.simulated.simulation import simulate
from orchestrator.taper import tapered
from orchestrator.trial import Workload
from workloads.catalogue import load_model
from workloads.closed_loop import Load, first_lengths

CELLS = (
    ("Qwen2.5-0.5B", 128, 256),
    ("Qwen2.5-0.5B", 2048, 256),
    ("Qwen2.5-0.5B", 16384, 16),
    ("Qwen2.5-3B", 4096, 16),
    ("Qwen2.5-7B", 1024, 64),
    ("Qwen2.5-7B", 16384, 4),
)
SHARINGS = {"single": (Alone, 1), "timesliced2": (TimeSlices, 2), "mps2": (SideBySide, 2)}
SETTLING = (0.0, LATENCIES_TO_SETTLE, 1.0)
OUTPUT_TOKENS, STEP_TOKENS = 128, 8192


def tokens_of(model: str, prompt: int, clients: int, arm: str, seed: int, until_s: float) -> tuple[np.ndarray, float]:
    """Arrivals as (time in ns, tokens), shape (arrivals, 2), and when the last client had its first token, in s."""
    sharing, count = SHARINGS[arm]
    settings = EngineSettings(1024, 10**9, STEP_TOKENS, STEP_TOKENS, async_scheduling=True)
    host, gpu = HostCosts.from_constants(), KINDS["H200"]
    costs = StepCosts(load_model(model), gpu, gpu.sms, 2.0)
    engines = [Engine(settings, costs, host, Workload("mixed", prompt, OUTPUT_TOKENS)) for _ in range(count)]
    for index, engine in enumerate(engines):
        own = range(index, clients, count)
        lengths = first_lengths(Load(len(own), prompt, OUTPUT_TOKENS, 2 * seed + index, STEP_TOKENS)).tolist()
        for place, (client, length) in enumerate(zip(own, lengths, strict=True)):
            engine.send(client, 0, length, 0.0, (place + 1) * value("frontend_request"))
    simulate(engines, sharing(), PowerCap(gpu), until_s)
    pairs = [
        (at_s * 1e9, step.tokens)
        for engine in engines
        for at_s, step in zip(engine.delivered_s, engine.steps, strict=False)
    ]
    return np.array(sorted(pairs)), max(engine.ramped_s() for engine in engines)


def rates(arrivals: np.ndarray, start_s: float, seconds: float) -> tuple[float, float]:
    """Tokens a second, counted and tapered."""
    start_ns, end_ns = int(start_s * 1e9), int((start_s + seconds) * 1e9)
    inside = (arrivals[:, 0] > start_ns) & (arrivals[:, 0] <= end_ns)
    return arrivals[inside, 1].sum() / seconds, tapered(arrivals[:, 0], arrivals[:, 1], start_ns, end_ns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    seeds = parser.parse_args().seeds
    titles = "".join(f"settle {settle:<4} counted / tapered    " for settle in SETTLING)
    print(f"cell and arm                          ramp  {titles}")
    for model, prompt, clients in CELLS:
        for arm in SHARINGS:
            arrivals, ramp_s = tokens_of(model, prompt, clients, arm, 0, 20.0)
            latency_s = clients * OUTPUT_TOKENS / rates(arrivals, 10.0, 10.0)[0]
            seen: dict[float, list[tuple[float, float]]] = {settle: [] for settle in SETTLING}
            for seed in range(1, seeds + 1):
                arrivals, ramp_s = tokens_of(model, prompt, clients, arm, seed, 24 * latency_s)
                steady, _ = rates(arrivals, ramp_s + 5 * latency_s, 16 * latency_s)
                for settle in SETTLING:
                    found = rates(arrivals, ramp_s + settle * latency_s, LATENCIES_A_WINDOW * latency_s)
                    seen[settle].append((found[0] / steady - 1, found[1] / steady - 1))
            cells = ""
            for settle in SETTLING:
                mean, scatter = np.mean(seen[settle], axis=0), np.std(seen[settle], axis=0, ddof=1)
                cells += f"{mean[0]:+7.1%} ±{scatter[0]:5.1%} / {mean[1]:+6.1%} ±{scatter[1]:5.1%}  "
            print(f"{model:13} {prompt:5} c={clients:<3} {arm:11} {ramp_s / latency_s:5.2f} {cells}", flush=True)


if __name__ == "__main__":
    main()
