"""How fast a sweep file becomes trials with ids: `python -m benchmarks.expand [TRIALS]`.

Prints one line: trials a second, load and expansion included, and the machine that it ran on.
"""

from __future__ import annotations

import sys

from benchmarks.rate import Rate, machine, timed
from orchestrator.expand import expand
from orchestrator.spec import SweepSpec, parse_spec

TRIALS = 100_000
SPEC = """\
schema_version: 1
name: expand-benchmark
question: How long does the expansion of a large sweep take?
backend: simulated
gpu: H100
engine_args: {{dtype: bfloat16, max_num_batched_tokens: 8192}}
arms:
  single: {{sharing: single}}
  timesliced2: {{sharing: timesliced, engines: 2}}
  mps2: {{sharing: mps, engines: 2}}
workload: {{output_tokens: 128}}
sweep:
  grid:
    model: [Qwen2.5-0.5B, Qwen2.5-1.5B, Qwen2.5-3B, Qwen2.5-7B]
    prompt_tokens: [{prompts}]
    concurrency: [2, 4, 8, 16, 32, 64, 128, 256]
repeats: 3
"""


def spec_of(trials: int) -> SweepSpec:
    """A sweep of at least `trials` trials: 4 models, 8 loads, 3 arms, 3 repeats, and as many contexts as it takes."""
    prompts = -(-trials // (4 * 8 * 3 * 3))
    return parse_spec(SPEC.format(prompts=", ".join(str(16 * n) for n in range(1, prompts + 1))))


def rates(trials: int = TRIALS) -> list[Rate]:
    spec, load_s, load_cpu_s = timed(lambda: spec_of(trials))
    repeats, expand_s, expand_cpu_s = timed(lambda: expand(spec, "simulated"))
    ids, ids_s, ids_cpu_s = timed(lambda: {repeat.trial_id(arm) for repeat in repeats for arm in repeat.arms})
    note = f"load {load_s:.2f} s, expand {expand_s:.2f} s, ids {ids_s:.2f} s"
    cpu_s = load_cpu_s + expand_cpu_s + ids_cpu_s
    return [Rate("spec to trials with ids", len(ids), "trials", load_s + expand_s + ids_s, cpu_s, note)]


def main() -> None:
    (rate,) = rates(int(sys.argv[1]) if len(sys.argv) > 1 else TRIALS)
    print(f"{rate.amount:,.0f} trials: {rate.note}: {rate.per_s:,.0f} trials/s on {machine()}")


if __name__ == "__main__":
    main()
