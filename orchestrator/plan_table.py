"""The plan in words: blocks with their memory arithmetic, what does not fit and why, GPU minutes, what is done."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from orchestrator.memory import GIB
from orchestrator.plan import Block, Plan
from orchestrator.spec import SweepSpec
from orchestrator.target import Target
from orchestrator.trial import Repeat


def print_plan(
    plan: Plan, spec: SweepSpec, repeats: Sequence[Repeat], done: int, target: Target, console: Console
) -> None:
    """Print what a run would do now. repeats: of the whole sweep; done: how many of them the store holds."""
    label = "SIMULATED, a prediction" if target.backend == "simulated" else "measured"
    console.print(f"sweep {spec.name}: {spec.question.strip()}", style="bold", highlight=False)
    console.print(
        f"backend {target.backend} ({label}), GPU kind {target.kind.name}, {plan.usable_bytes / GIB:.1f} GiB usable",
        highlight=False,
    )
    for block in plan.blocks:
        console.print(_block_table(block, plan.usable_bytes))
    reasons: dict[str, list[str]] = defaultdict(list)
    for skip in plan.skips:
        reasons[skip.reason].append(f"{skip.arm.name} r{skip.repeat.number}")
    for reason, who in reasons.items():
        console.print(f"skipped ({', '.join(who)}): {reason}", style="yellow", highlight=False)
    trials = sum(len(repeat.measured) for block in plan.blocks for repeat in block.repeats)
    wanted = sum(len(repeat.measured) for repeat in repeats)
    console.print(
        f"{wanted} trials in {len(repeats)} repeats; in the store already: {done} "
        f"repeats; to run: {trials} trials in {len(plan.blocks)} blocks; does not fit: {len(plan.skips)} trials",
        highlight=False,
    )
    cost = "no GPU time: virtual" if target.backend == "simulated" else f"{plan.expected_gpu_s / 60:.0f} GPU minutes"
    console.print(f"expected at the fewest windows: {cost}", highlight=False)


def _block_table(block: Block, usable_bytes: int) -> Table:
    total = sum(arm.engines * block.memory[arm.name].total for arm in block.arms)
    peak = total if block.residency == "resident" else max(a.engines * block.memory[a.name].total for a in block.arms)
    cells = [
        f"{repeat.cell.workload.kind} {repeat.cell.workload.prompt_tokens}/{repeat.cell.workload.output_tokens} "
        f"c={repeat.cell.concurrency}{f', {repeat.alone} alone' if repeat.alone else ''}"
        for repeat in block.repeats
    ]
    table = Table(
        title=f"block {block.block_id[:8]}: {block.model} repeat {block.repeats[0].number}, arms {block.residency}, "
        f"{peak / GIB:.1f} of {usable_bytes / GIB:.1f} GiB, about {block.expected_gpu_s / 60:.1f} min",
        caption="; ".join(cells),
        title_justify="left",
        caption_justify="left",
    )
    columns = (
        "arm",
        "sharing",
        "engines",
        "weights GiB",
        "KV GiB",
        "context GiB",
        "arm GiB",
        "max_model_len",
        "trials",
    )
    for column in columns:
        table.add_column(column)
    for arm in block.arms:
        memory = block.memory[arm.name]
        table.add_row(
            arm.name,
            arm.sharing,
            str(arm.engines),
            *(f"{part / GIB:.2f}" for part in (memory.weights, memory.kv, memory.context)),
            f"{arm.engines * memory.total / GIB:.2f}",
            str(block.sizing[arm.name].max_model_len_tokens),
            str(sum(arm in repeat.measured for repeat in block.repeats)),
        )
    return table
