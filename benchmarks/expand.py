"""How fast a sweep file becomes trials with ids: `python -m benchmarks.expand [TRIALS]`.

Prints one line: trials a second, load and expansion included, and the machine that it ran on.
"""

from __future__ import annotations

import platform
import sys
import time
from pathlib import Path

from orchestrator.expand import expand
from orchestrator.spec import parse_spec

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


def main() -> None:
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    prompts = -(-wanted // (4 * 8 * 3 * 3))
    started = time.perf_counter()
    spec = parse_spec(SPEC.format(prompts=", ".join(str(16 * n) for n in range(1, prompts + 1))))
    loaded = time.perf_counter()
    repeats = expand(spec, "simulated")
    expanded = time.perf_counter()
    ids = {repeat.trial_id(arm) for repeat in repeats for arm in repeat.arms}
    hashed = time.perf_counter()
    print(
        f"{len(ids):,} trials: load {loaded - started:.2f} s, expand {expanded - loaded:.2f} s, "
        f"ids {hashed - expanded:.2f} s: {len(ids) / (hashed - started):,.0f} trials/s on {machine()}"
    )


def machine() -> str:
    """Processor, its count, and the interpreter."""
    names = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return f"{len(names)} x {names[0] if names else platform.machine()}, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
