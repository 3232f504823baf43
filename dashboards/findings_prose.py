"""The words around the tables of the findings page: what was done and what was not. No figure stands here that the
record could change."""

HEAD = """# Findings so far

Measured, not simulated. Made from `{source}` by `python -m dashboards.findings`; the store holds every window, and the
requests of some clients (`reference/README.md`). World: {world}.
Prompts are random token ids, sampling is greedy. Unless an arm's name says otherwise, engines are pinned, EngineCore
alone on one core, frontend and clients on another, and weights are dummies, which are near zero.

What was run:
"""

REGION_NOTE = """In short, from the table below; one boot decides nothing, so read its figures as where to look:

1. Give every step of the one engine one CUDA graph: `cudagraph_mode: FULL`, captured up to the largest step, in sizes
   with little padding. It helps whatever bounds the engine, and costs seconds of its boot. (The attention backend must
   allow it; FlashAttention 3 does.)
2. Then see what bounds it: `bound_by` of its windows.
3. EngineCore bounds it: a second engine helps in most cells, and most of that comes from the second process, not from
   MPS.
4. EngineCore and GPU wait for each other in turn, or the power limit binds: a second engine gives next to nothing or
   loses, and without MPS it loses more. Keep one.
5. Two engines are there anyway, for two models or tenants: under MPS rather than in time slices.
6. Asynchronous scheduling is vLLM's default: leave it on. Pinning makes engines comparable and no faster here.

What each option gave over an engine without it, by what bounds that engine:
"""

OPTIONS_NOTE = """
The same cell by cell, the largest first, where settings of one engine were measured. Each option is over one pinned
engine with CUDA graphs up to 1,024 tokens, or that engine over one without it; in `tune-graphs` over one with graphs up
to 8,192 tokens, launched in pieces, and in `scaling-landscape` over one that has every step in one graph: there the
second engine comes on top of the best setting.
"""

VERDICT_NOTE = """The ratio is of throughput, at equal total concurrency, as a geometric mean over boots. Three sets of
boots are the least for `wins` or `loses`. Their number stood in the sweep files before anything was measured, so the
intervals are Student's (`--planned-boots`); whoever adds boots after a look has to drop that.
"""

CLAIM_NOTE = """The Databricks article on scaling small LLMs with NVIDIA MPS claims what stands here in short words of
ours. `reproduced`: every cell that the claim names was measured in three boots or more, and meets the rule with its
whole 95 % interval. `not reproduced`: the interval of one such cell or more lies wholly on the other side. `undecided`:
all else. Every interval stands for itself, so of many cells one may contradict a claim by chance; they are named. C5
and C6 are judged by the cells of `prefill-landscape` with one output token, C7 to C10 by the replayed steps of
`ablation-decode-replay` and `ablation-prefill-replay`, C11 by Gemma 4B in `async-scheduling`, C12 by `tokenisation` and
`images`, C18 by all cells of both landscapes, all others by `scaling-landscape` alone. The gain is mps2 / single at
equal total concurrency, but in C11, which compares arms at equal latency. A cell counts only with the clients of the
sweep file, and with no ground against its verdict (`docs/method.md`).

This is not the study's setup: that had an H100 and left open its engine, its clients, the placement of processes and
its repeats. Here are an H200, which has more memory and bandwidth, the vLLM version named above, pinned cores, a third
arm without MPS, and as many clients in each cell as the sweep file's rule gives. The rules' bounds were fixed before
anything was measured; what they left open was settled with part of the landscape measured: C2, how cells' uncertainty
enters (`dashboards/context_fit.py`), errors being root mean squares of the gain at cells left out; C4, the loss in the
end is looked for above 2,048 tokens; C6, the slope, too, has to be below zero with its interval; C7, a resource binds a
kernel that gets half or more of its peak; C8, the smallest model in every cell, decode and prefill alike; C9,
attention's gain over the full model's in every cell; C17, each cell has to meet the rule, where a GPU that waits for
its host reads as idle, too (see the next table); C18, the study gives no threshold, so the whole rule is ours. What the
rules of C11 and C12 left open was settled before any of their cells was measured: C11, 8 s is the median end-to-end
latency, at which the whole ladder of the sweep file is read, both gains have to be upward, and their ratio is one of
throughputs, MPS over async scheduling, not of percentages; C12, the gain with the work in the path has to be above 1
and above that of the same cell without it, by whole intervals in every cell, for tokenising and for images both.
"""

TUNING_NOTE = """What a second engine gives is worth asking only of a first one that was cared for. Steps of more tokens
than the largest captured CUDA graph are launched kernel by kernel from the host, and with longer prompts most steps of
one engine are such; two engines do that on two cores, so an untuned baseline reads as a gain of sharing. So the single
engine's settings were chosen first, on windows of their own, by a rule (`dashboards/tuning.py`) and up to the step size
that a server takes on such a GPU by default. `untuned` is vLLM's own largest graph and a bare engine's step size.
Padding is the share of the tokens computed that only fills steps up to the sizes of their graphs; windows from before
it was written down have none.
"""

SETTINGS_NOTE = """The same cells, clients, arms and rules, with the CUDA graphs of every engine as they were before
tuning, as its first stage chose them, and as its last one did. A graph is captured up to so many tokens a step. `in
pieces`: where a prompt is in the step, the host launches attention between pieces of a graph, layer by layer. `whole`:
every step is one graph (`cudagraph_mode: FULL`). Where the gain falls from one row of a cell to the next, that much of
it was the first engine's settings and not the second engine. Where `engine_core` bounds the one engine, its rate
follows the speed of its core, which the host's other guests halve at times: rows whose speeds differ are not on equal
terms, and more boots are what evens that out.
"""

EARLIER_NOTE = """
With graphs `{graphs}` (`{source}`) the published claims would have come out as follows, by the same rules; the claims
above do not count these windows.
"""

LANDSCAPE_NOTE = """Ratios of throughput with 95 % intervals over boots, and the verdict. The gain is the product of
host parallelism and kernel overlap. Where `engine_core` bounds the single engine, the GPU waits for the host, and a
second process helps without MPS, too. Counters and bounds are those of certified windows. Padding fills steps up to the
sizes of their CUDA graphs; windows from before it was counted have none.
"""

SUSTAINED_NOTE = """One window of a minute a model and arm, beside the short windows of the same cells: whether a GPU
that warms up, or runs into its power limit slowly, gives less in the end than at first.
"""

ABLATION_NOTE = """Attention alone and the MLP alone are the model with the other half of every layer taken out
(`docs/engine.md`). Gains are mps2 / single of replayed steps, with no scheduler and no client in the path; overlap is
mps2 / timesliced2. Expected is what the full model would gain if each half gained in it what it gains alone: the
published study's weighted mean of gains, and beside it the harmonic mean by which times compose, which is never larger.
Intervals are 95 %, carried through as those of independent boots.
"""

PART_NOTE = """
Where the time of a step goes, single engine, from a profile of its kernels; what the kernels leave of the replayed step
lies between them. Below zero: launched one by one, kernels took longer than in the graph. Profiles with over 5 % more
than the step in them are left out.
"""

RESOURCE_NOTE = """
What both halves of the layers need by the arithmetic of the model catalogue, beside the time that their kernels took:
the attention kernel alone, and the two products of the MLP.
"""

AGAIN_NOTE = """The same file, through one `ray job submit` on a host with two GPUs, each with half of the host's cores:
{side_by_side}. Of that time:

{spent}
"""

GPU_NOTE = """The cell that most GPUs have seen: Qwen2.5-1.5B, prompts of 512 tokens, one output token, 128 clients,
where the power limit binds. Boots of one GPU agree and GPUs differ, so an interval over boots of one GPU is too narrow
for the next one: it speaks of the GPUs that were measured. (The GPU with the highest rate has plain counts, see
`reference/README.md`.)
"""

SPEED_NOTE = """One and the same engine gives two rates, minutes or seconds apart. The cause is outside the engine: the
speed of the core that EngineCore runs on moves between two levels{levels}, for tens of milliseconds to
seconds at a time, on a machine that does nothing else. It fits another guest of the host using the
sibling hardware thread of our core: no steal time is charged for that, and the guest's topology does
not show siblings. EngineCore therefore times a fixed piece of work at each step, and every window
carries the mean. Where EngineCore bounds the rate, the rate follows that speed with a slope near 1,
and little scatter is left once it is known; where the GPU bounds it, the slope is near 0.
"""

COST_NOTE = """Where EngineCore bounds the rate, how long is a step, and what of? One law is fitted to windows of one
engine whose GPU waits (`dashboards/step_cost.py`): so much for a step, for each sequence in it, and for each layer
where the step is no whole CUDA graph, all of it in proportion to the core's speed. vLLM launches a step of decodes as
one graph; one with a prefill in it in pieces, attention by itself between them; one of more tokens than its largest
graph kernel by kernel.
"""

HELD_NOTE = """
By cell: where the time of a step goes, by the law, and how far the law is from the clock.
"""

PIPELINE_NOTE = """One engine of the landscape, every step one graph: do the law above, at its core's speed, and the
time that the GPU needs for the same steps explain how fast it is? The GPU's part is arithmetic: the kernels of the
simulated GPU (`docs/simulation.md`) at the clock of the window, with whole prompts coming independently of one another;
nothing of it was fitted to these windows. vLLM keeps two steps in flight, so a step takes as long as the slower of the
two parts, one by one and not on average (`dashboards/step_pipeline.py`). Steps with a prompt are long, and the GPU sets
their pace; those without are short, and EngineCore does. That is what stands behind `unknown` as the bound of one
engine: each waits for the other in turn, neither is busy for nine tenths of the time, and a second engine fills the
gaps of both.
"""

NOISE_NOTE = """What differs here is nothing but chance: two windows of one arm, next to each other in one boot; two
arms of one boot that differ in name alone (`single` and `single-again`); one arm in two boots. Where EngineCore bounds
the rate, its core's speed is what moves; where the GPU's power limit does, hardly anything moves.
"""

ALARM_NOTE = """
Judged as if they were different, at a margin of zero, so that whoever wins does so by mistake: the windows of every arm
of three boots or more, dealt out to two arms in turns, and `single-again` against `single`, of both stores.
"""

RESIDENCY_NOTE = """The engines of all arms are loaded side by side, and only one arm gets load. At the end of a set of
boots all engines but one arm's were ended, and that arm was measured again, in the same boot. Harmless means: the
interval lies within half the tie margin.
"""

GRAPH_NOTE = """A closed loop out of step mixes decodes and prefills in most steps. With 256 clients and prompts of 128
tokens, steps with three prefills exceed 512 tokens, vLLM's largest captured CUDA graph by default, and
are launched kernel by kernel; a pair's steps hold half as much and fit. Capturing up to 1,024 tokens
gives the single engine part of what a second engine would (sweep `capture-size`); `smoke-gpu` gives
every arm 1,024.
"""

POWER_NOTE = """Prefill with 8,192 tokens a step draws the power limit in every arm that keeps the GPU busy: the clock
then falls in the denser arm, and what MPS overlaps is paid for in clock.
"""

POWER_LAW_NOTE = """
What it goes into, by the counters of single engines' windows (near-zero weights). The energy of a FLOP falls with the
square of the clock, so the cap takes less in rate than it would of a fixed energy: where it lowers the clock by a
tenth, a FLOP costs a fifth less.
"""

KILL_NOTE = """On one GPU of a host, one part of a measuring sweep after another was ended with SIGKILL while two
engines under MPS were at work. Afterwards is once the block's processes are gone, when the next block may
be booting already; for the driver, at the end of all its processes.
"""

TAIL = """
## Placement and weights

`single-unpinned` lets the engine float over the whole machine, `single-random` fills the weights with numbers of the
size that trained ones have; both stand in the verdict table against `single`. On these hosts, their cores slowed by
neighbours that nobody sees, an engine that may leave a slow core gave as much as one that may not, or more: pinning
makes arms comparable, and is no gain by itself here. In prefill the power limit binds with either weights, and the
clock that it leaves is a little lower where the numbers are real.

## Not measured yet

Most of the landscapes with the settings chosen, sustained windows, a GPU with and without a busy neighbour, most of the
ablations, and the published claims about host overhead and faults.
"""
