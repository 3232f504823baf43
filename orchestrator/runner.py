"""Run one block on one GPU: boot its arms, interleave their windows, and hand back each repeat's rows as it ends.

    for done in run_block(block, open_deployment, context):     # done.frames go to the store

This is the trial boundary: a MeasurementError becomes failed rows with its reason here and nowhere else, and anything
that is not one is a bug and propagates. An engine crash or an MPS fault ends the block: what was measured before stays,
the repeat at hand fails, and the repeats after it are handed back unmeasured for another attempt.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import polars as pl

from orchestrator.errors import MeasurementError, WindowError
from orchestrator.observation import BootFacts, Deployment, Observation, WindowOrder
from orchestrator.order import rounds
from orchestrator.pace import Pace, little_latency_s
from orchestrator.plan import Block
from orchestrator.rows import output_tokens_s, prefill_tokens_s, requests_frame, samples_frame, trial_row, window_row
from orchestrator.sequential import enough
from orchestrator.trial import Arm, Outcome, Repeat, fingerprint

OpenDeployment = Callable[[Block, Sequence[Arm]], AbstractContextManager[Deployment]]

# A window must hold three median request latencies (closed loop: fewer see only part of the cycle); with a fourth, one
# latency that was underestimated leaves three. That it is no whole number of cycles makes little in a tapered rate.
LATENCIES_A_WINDOW = 4.0
# Until every client has its first token an engine prefills all their prompts, as it does in one latency, but for the
# steps in which nothing waits: at most so much of one (benchmarks/warmup.py). Long steps leave a pilot only a few.
RAMP_OF_A_LATENCY = 0.85
# Once every client has its first token the loop is out of step (`closed_loop.first_lengths`), as lengths that differ
# would leave it. With lengths that are all alike it does not stay so for ever: requests that come to end in one step
# end together from then on, so steps with a prefill become fewer, and where such steps cost much, simulated rates creep
# up over tens of latencies (benchmarks/warmup.py). That is no state of a service, and no window waits for it.
LATENCIES_TO_SETTLE = 0.25
# A frontend that tokenises or prepares images hands prompts over at its own pace, which no step tells: until every
# first request has ended.
LATENCIES_TO_SETTLE_UNPACED = 1.0


@dataclass(frozen=True, slots=True)
class TrialSummary:
    """What the driver shows of a trial: no rows."""

    trial_id: str
    arm: str
    model: str
    kind: str
    prompt_tokens: int
    concurrency: int
    repeat: int
    outcome: str
    reason: str | None
    tokens_per_s: float | None
    windows: int


@dataclass(frozen=True, slots=True)
class DoneRepeat:
    """A repeat that was measured, or failed: its rows by table, and a summary a trial."""

    repeat: Repeat
    attempt_id: str
    frames: Mapping[str, pl.DataFrame]
    summaries: tuple[TrialSummary, ...]


@dataclass(slots=True)
class TrialLog:
    """What one arm of one repeat has given so far."""

    arm: Arm
    trial_id: str
    boot: BootFacts | None = None
    observations: list[Observation] = field(default_factory=list)
    rows: list[dict[str, object]] = field(default_factory=list)
    log_rates: list[float | None] = field(default_factory=list)  # None: not certified, or nothing moved
    started_unix_s: float = 0.0
    measuring_s: float = 0.0
    outcome: Outcome = Outcome.OK
    reason: str | None = None
    log_tail: str = ""

    def fail(self, error: MeasurementError) -> None:
        self.outcome, self.reason, self.log_tail = Outcome.FAILED, f"{type(error).__name__}: {error}", error.log_tail


@dataclass(frozen=True, slots=True)
class RepeatLog:
    """One attempt at a repeat: its trials by arm name."""

    repeat: Repeat
    attempt_id: str
    trials: Mapping[str, TrialLog]

    @classmethod
    def start(cls, repeat: Repeat) -> RepeatLog:
        trials = {arm.name: TrialLog(arm, repeat.trial_id(arm)) for arm in repeat.measured}
        return cls(repeat, secrets.token_hex(6), trials)


@dataclass(frozen=True, slots=True)
class BlockContext:
    """What a block's rows carry besides what was measured."""

    sweep: str
    spec_sha: str
    skip_reasons: Mapping[str, str] = field(default_factory=dict)  # by trial_id, decided by the plan
    planned_boots: Mapping[str, int] = field(default_factory=dict)  # by repeat_id, where no boot will be added


def run_block(
    block: Block, open_deployment: OpenDeployment, context: BlockContext, pace: Pace | None = None
) -> Iterator[DoneRepeat]:
    """Measure every repeat of `block`; yields each when its rows are complete.

    pace: what earlier blocks on this host showed, and where this one notes what it sees; None: every repeat begins with
    a look at each arm.
    Ends early, after yielding the repeat that failed, when the deployment is lost: what was not yielded is left to
    another attempt.
    """
    if block.residency == "resident":
        yield from _run_resident(block, open_deployment, context, pace)
    else:
        yield from _run_alone(block, open_deployment, context, pace)


def _run_resident(
    block: Block, open_deployment: OpenDeployment, context: BlockContext, pace: Pace | None
) -> Iterator[DoneRepeat]:
    """All arms side by side; where one is to be measured alone, last and in the same boot, the others go first."""
    ordered = sorted(block.repeats, key=lambda repeat: repeat.alone is not None)
    waiting = [RepeatLog.start(repeat) for repeat in ordered]
    try:
        with open_deployment(block, block.arms if ordered[0].alone is None else ordered[0].measured) as deployment:
            while waiting:
                if (alone := waiting[0].repeat.alone) is not None:
                    deployment.keep_only(alone)
                measure(waiting[0], deployment, waiting[0].repeat.measured, pace)
                yield finish(waiting.pop(0), block, context)
    except MeasurementError as error:
        if not waiting:  # everything was measured and handed over: only the teardown failed, which its owner reports
            raise
        for trial in waiting[0].trials.values():
            if trial.outcome is Outcome.OK:
                trial.fail(error)
        yield finish(waiting[0], block, context)


def _run_alone(
    block: Block, open_deployment: OpenDeployment, context: BlockContext, pace: Pace | None
) -> Iterator[DoneRepeat]:
    """One arm after another; a lost deployment fails that arm's remaining trials and leaves the other arms alone."""
    logs = [RepeatLog.start(repeat) for repeat in block.repeats]
    for arm in block.arms:
        concerned = [log for log in logs if arm.name in log.trials]
        waiting = [log for log in concerned if log.trials[arm.name].trial_id not in context.skip_reasons]
        if not waiting:
            continue
        try:
            with open_deployment(block, [arm]) as deployment:
                while waiting:
                    measure(waiting[0], deployment, [arm], pace)
                    waiting.pop(0)
        except MeasurementError as error:
            for log in waiting:
                log.trials[arm.name].fail(error)
    for log in logs:
        yield finish(log, block, context)


def measure(log: RepeatLog, deployment: Deployment, arms: Sequence[Arm], pace: Pace | None = None) -> None:
    """Take windows of `arms`, round by round, until every contrast is narrow enough or the budget is spent.

    A WindowError fails its trial and the others go on; any other MeasurementError propagates: the deployment is lost.
    """
    repeat, look = log.repeat, log.repeat.measurement
    for arm in arms:
        log.trials[arm.name].boot = deployment.boots[arm.name]
        log.trials[arm.name].started_unix_s = time.time()
    order = _sized_order(log, deployment, arms, pace)
    previous: str | None = None
    order_index = 0
    for round_index, arms_in_turn in enumerate(rounds(arms, repeat.seed)):
        alive = [arm for arm in arms_in_turn if log.trials[arm.name].outcome is Outcome.OK]
        if not alive or round_index >= look.max_windows:
            break
        if round_index >= look.min_windows and enough(_contrasts(log, arms), look):
            break
        if pace is not None and round_index > 0:
            order = _resized(order, repeat, pace.known_s(repeat, arms))
        for arm in alive:
            trial = log.trials[arm.name]
            ordered = replace(
                order,
                arm=arm,
                seed=_seed(repeat, arm.name, round_index),
                profile_steps=look.profile_steps if arm.engines == 1 else 0,
            )
            began = time.monotonic()
            try:
                seen = deployment.measure(ordered)
            except WindowError as error:
                trial.fail(error)
                previous = arm.name  # its load was there, whatever came of it
                continue
            # With virtual time the clock tells nothing: what a verdict costs would depend on the load of this machine.
            virtual = repeat.backend == "simulated"
            trial.measuring_s += seen.warmup_s + seen.duration_s if virtual else time.monotonic() - began
            row = window_row(
                repeat, trial, deployment.boots[arm.name], seen, ordered, round_index, order_index, previous
            )
            if pace is not None:
                pace.note(repeat, arm, little_latency_s(repeat, seen.output_tokens, seen.duration_s))
            trial.observations.append(seen)
            trial.rows.append(row)
            trial.log_rates.append(_log_rate(repeat, seen) if row["certified"] else None)
            previous = arm.name
            order_index += 1


def _sized_order(log: RepeatLog, deployment: Deployment, arms: Sequence[Arm], pace: Pace | None) -> WindowOrder:
    """Warm-up and window, long enough for the slowest arm and the same for all. Where no earlier boot has shown how
    slow that is, look at each arm once, briefly."""
    repeat, look = log.repeat, log.repeat.measurement
    order = WindowOrder(
        arm=arms[0],
        workload=repeat.cell.workload,
        concurrency=repeat.cell.concurrency,
        warmup_s=0.0,
        window_s=look.pilot_s,
        seed=0,
        pilot=True,
    )
    known_s = pace.known_s(repeat, arms) if pace else None
    if repeat.cell.workload.replayed:  # steps have no latency that a window would have to hold
        known_s = 0.0
    longest_s = known_s or 0.0
    for arm in arms if known_s is None else ():
        try:
            seen = deployment.measure(replace(order, arm=arm, seed=_seed(repeat, arm.name, -1)))
        except WindowError as error:
            log.trials[arm.name].fail(error)
            continue
        longest_s = max(longest_s, _pilot_latency_s(repeat, seen))
    return _resized(replace(order, pilot=False, warmup_s=look.warmup_s), repeat, longest_s)


def _pilot_latency_s(repeat: Repeat, seen: Observation) -> float:
    """As Little's law has it from a short window, and no less than the ramp before it says."""
    tokens = seen.output_tokens
    if seen.output_tokens_s is not None:
        tokens = round(seen.output_tokens_s * seen.duration_s)
    latency_s = little_latency_s(repeat, tokens, seen.duration_s)
    return max(latency_s, seen.warmup_s / RAMP_OF_A_LATENCY) if latency_s else 0.0


def _resized(order: WindowOrder, repeat: Repeat, longest_s: float | None) -> WindowOrder:
    """For the slowest arm's latency; as it is where nothing new is known.

    A round knows more than the pilot before it, which saw the engines' first seconds: its windows may be shorter. Those
    of one round are all alike, and rounds are what is compared.
    """
    look, work = repeat.measurement, repeat.cell.workload
    if longest_s is None or work.replayed:
        longest_s = order.latency_s or 0.0
    return replace(
        order,
        settle_s=(LATENCIES_TO_SETTLE_UNPACED if work.as_text or work.with_image else LATENCIES_TO_SETTLE) * longest_s,
        window_s=max(look.window_s, LATENCIES_A_WINDOW * longest_s),
        latency_s=longest_s or None,
    )


def _contrasts(log: RepeatLog, arms: Sequence[Arm]) -> dict[str, list[float]]:
    """Per candidate, the log rate ratios of its rounds; where arms run alone, the arm's own log rates.

    Only what a verdict will use: rounds in which both windows are certified, of candidates that did not fail.
    """
    if len(arms) == 1:
        rates = [rate for rate in log.trials[arms[0].name].log_rates if rate is not None]
        return {arms[0].name: rates}
    base = log.trials[log.repeat.baseline.name].log_rates
    return {
        arm.name: [
            rate - reference
            for rate, reference in zip(log.trials[arm.name].log_rates, base, strict=False)
            if rate is not None and reference is not None
        ]
        for arm in arms
        if arm.name != log.repeat.baseline.name and log.trials[arm.name].outcome is Outcome.OK
    }


def _log_rate(repeat: Repeat, seen: Observation) -> float | None:
    if seen.duration_s <= 0:
        return None
    plain = _credited_tokens(repeat, seen) / seen.duration_s
    rates = (prefill_tokens_s(repeat, seen), output_tokens_s(repeat, seen), plain)
    rate = next(each for each in rates if each is not None)
    return math.log(rate) if rate > 0 else None


def _credited_tokens(repeat: Repeat, seen: Observation) -> int:
    """The tokens that a rate is of: as in `contrast.rate`, prompt tokens in prefill, else output tokens."""
    return seen.prompt_tokens if repeat.cell.workload.phase == "prefill" else seen.output_tokens


def _seed(repeat: Repeat, arm: str, round_index: int) -> int:
    return int(fingerprint([repeat.seed, repeat.repeat_id, arm, round_index])[:8], 16)


def finish(log: RepeatLog, block: Block, context: BlockContext) -> DoneRepeat:
    """Turn a repeat's log into the rows of the four tables."""
    trials, windows, requests, samples, summaries = [], [], [], [], []
    for trial in log.trials.values():
        if (reason := context.skip_reasons.get(trial.trial_id)) is not None:
            trial.outcome, trial.reason = Outcome.SKIPPED, reason
        elif trial.outcome is Outcome.OK and not trial.rows:
            trial.outcome, trial.reason = Outcome.FAILED, "no window was measured"
        trials.append(trial_row(log, trial, block, context))
        windows += trial.rows
        for index, seen in enumerate(trial.observations):
            requests.append(requests_frame(trial.trial_id, log.attempt_id, index, seen))
            samples.append(samples_frame(trial.trial_id, log.attempt_id, index, seen))
        summaries.append(_summary(log.repeat, trial))
    frames = {
        "trials": pl.DataFrame(trials, infer_schema_length=None),
        "windows": pl.DataFrame([row | {"attempt_id": log.attempt_id, "block_id": block.block_id} for row in windows]),
        "requests": pl.concat(requests) if requests else pl.DataFrame(),
        "samples": pl.concat(samples) if samples else pl.DataFrame(),
    }
    return DoneRepeat(log.repeat, log.attempt_id, frames, tuple(summaries))


def _summary(repeat: Repeat, trial: TrialLog) -> TrialSummary:
    work = repeat.cell.workload
    seconds = sum(seen.duration_s for seen in trial.observations)
    tokens = sum(_credited_tokens(repeat, seen) for seen in trial.observations)
    return TrialSummary(
        trial_id=trial.trial_id,
        arm=trial.arm.name,
        model=repeat.cell.model,
        kind=work.kind,
        prompt_tokens=work.prompt_tokens,
        concurrency=repeat.cell.concurrency,
        repeat=repeat.number,
        outcome=trial.outcome.value,
        reason=trial.reason,
        tokens_per_s=tokens / seconds if seconds else None,
        windows=len(trial.rows),
    )
