"""A sound window of each backend, and everything that can be wrong with one, one fault at a time."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import polars as pl
import pytest

from orchestrator.certificate import MAY_BE_UNKNOWN, Planned, certify
from orchestrator.observation import Attachment, EngineFacts, GpuFacts, Observation, ReplayedStep, WindowOrder
from orchestrator.trial import Arm, Mps, Single, TimeSliced, Workload
from orchestrator.validity import CHECKS

SECOND_NS = 1_000_000_000
GIB = 2**30
START_NS = 50 * SECOND_NS

MPS_PAIR = Arm("mps2", Mps(2))
SLICED_PAIR = Arm("timesliced2", TimeSliced(2))
SINGLE = Arm("single", Single())
VLLM = Planned("vllm", kv_bytes_per_engine=8 * GIB, max_num_seqs=64)


def order(arm: Arm = MPS_PAIR, kind: Any = "mixed", concurrency: int = 64) -> WindowOrder:
    return WindowOrder(arm, Workload(kind, 128, 128), concurrency, warmup_s=2.0, window_s=4.0, seed=1)


def engine(index: int, clients: int) -> EngineFacts:
    return EngineFacts(
        engine=index,
        clients=clients,
        in_flight_mean=clients - 0.02,
        requests_completed=clients * 4,
        requests_failed=0,
        running_mean=clients - 0.1,
        waiting_mean=0.1,
        kv_usage_max=0.3,
        preemptions=0,
        prefix_cache_hits=0,
        kv_bytes=8 * GIB - 5_000_000,  # whole blocks
        core_set_ok=True,
    )


def requests(clients: int, latency_s: float, duration_s: float = 4.0, gap_s: float = 0.0) -> pl.DataFrame:
    """A closed loop: each client's requests follow one another, gap_s apart, clients spread evenly over one latency."""
    rows = []
    for client in range(clients):
        sent_s = -(latency_s + gap_s) * (client / clients)
        while sent_s < duration_s:
            sent_ns = START_NS + round(sent_s * SECOND_NS)
            rows.append((client, sent_ns, sent_ns + round(latency_s * SECOND_NS), "ok"))
            sent_s += latency_s + gap_s
    return pl.DataFrame(rows, schema=["client", "sent_ns", "last_token_ns", "status"], orient="row")


def attachment(arm: Arm) -> Attachment:
    """Engines 11 and 12 are the MPS pair's, 21 and up are those of the other arms, all resident."""
    others = (21, 22, 23)
    if arm.sharing == "mps":
        return Attachment((11, 12), (11, 12), others, others, "client-list+token")
    return Attachment((), (11, 12), others, others, "client-list+token")


def sound(arm: Arm = MPS_PAIR, concurrency: int = 64) -> Observation:
    """A window with nothing wrong with it."""
    engines = tuple(engine(index, concurrency // arm.engines) for index in range(arm.engines))
    return Observation(
        start_ns=START_NS,
        duration_s=4.0002,
        warmup_s=2.0,
        output_tokens=32768,
        prompt_tokens=32768,
        requests=requests(concurrency, latency_s=1.0),
        samples=pl.DataFrame(),
        engines=engines,
        gpu=GpuFacts(memory_used_bytes=51 * GIB),
        attachment=attachment(arm),
        idle_arm_steps=0,
    )


def with_engine(seen: Observation, **changes: Any) -> Observation:
    """The second engine with some facts changed."""
    return replace(seen, engines=(*seen.engines[:1], replace(seen.engines[1], **changes)))


def failed_checks(seen: Observation, asked: WindowOrder | None = None, planned: Planned = VLLM) -> list[str]:
    certificate = certify(asked or order(), seen, planned)
    assert certificate.certified == (not certificate.failures)
    assert set(certificate.checks) == set(CHECKS)
    assert all("\n" not in line for line in certificate.failures)
    return [line.partition(":")[0] for line in certificate.failures]


@pytest.mark.parametrize("arm", [SINGLE, SLICED_PAIR, MPS_PAIR])
def test_a_sound_window_is_certified(arm: Arm) -> None:
    assert failed_checks(sound(arm), order(arm)) == []


def replayed(
    kind: str, arm: Arm = MPS_PAIR, tokens: int = 32, sequences: int = 32, launched: str = "graph"
) -> list[str]:
    """What is wrong with a window in which each engine ran such a step, and no request moved."""
    seen = sound(arm)
    step = ReplayedStep(tokens, sequences, launched, asked=32 // (2 // arm.engines) if "decode" in kind else 7782)
    engines = tuple(
        replace(engine, replayed=step, requests_completed=0, running_mean=None, waiting_mean=None, kv_usage_max=None)
        for engine in seen.engines
    )
    return failed_checks(replace(seen, engines=engines, requests=seen.requests.clear()), order(arm, kind=kind))


def test_a_replayed_window_is_held_to_its_step_and_not_to_requests() -> None:
    assert replayed("decode-replay") == replayed("prefill-replay", tokens=8000) == []
    assert replayed("decode-replay", SINGLE, 64, 64) == []
    assert replayed("decode-replay", tokens=31, sequences=31) == ["replayed_step"]  # a client is missing
    assert replayed("decode-replay", tokens=40) == ["replayed_step"]  # a prefill is in it
    assert replayed("prefill-replay", tokens=7781) == ["replayed_step"]  # it was not full
    assert replayed("decode-replay", launched="call") == ["replayed_step"]  # by a host, kernel by kernel
    assert failed_checks(sound(), order(kind="decode-replay")) == ["replayed_step"]  # nobody said what was run
    # The same window held against an order that is served: nothing was.
    assert set(replayed("mixed")) >= {"completions", "waiting"}


FAULTS: dict[str, tuple[Callable[[Observation], Observation], str]] = {
    "one engine missing": (lambda seen: replace(seen, engines=seen.engines[:1]), "engines"),
    "fewer clients than asked": (lambda seen: with_engine(seen, clients=30, in_flight_mean=30.0), "engines"),
    "cut off": (lambda seen: replace(seen, duration_s=3.9), "length"),
    "no tokens": (lambda seen: replace(seen, output_tokens=0), "tokens"),
    "failed requests": (lambda seen: with_engine(seen, requests_failed=2), "failed_requests"),
    "starved": (lambda seen: with_engine(seen, in_flight_mean=30.9), "in_flight"),
    "hoarded": (lambda seen: with_engine(seen, in_flight_mean=33.1), "in_flight"),
    "think time": (lambda seen: replace(seen, requests=requests(64, 0.5, gap_s=0.5)), "little"),
    "preempted": (lambda seen: with_engine(seen, preemptions=1), "preemptions"),
    "prompts seen before": (lambda seen: with_engine(seen, prefix_cache_hits=40), "prefix_cache"),
    "less KV than planned": (lambda seen: with_engine(seen, kv_bytes=7 * GIB), "kv_bytes"),
    "unequal KV": (lambda seen: with_engine(seen, kv_bytes=9 * GIB), "kv_bytes"),
    "wrong cores": (lambda seen: with_engine(seen, core_set_ok=False), "core_sets"),
    "idle arms at work": (lambda seen: replace(seen, idle_arm_steps=3), "idle_arms"),
    "a stranger": (lambda seen: replace(seen, gpu=GpuFacts(foreign_pids=(4711,))), "strangers"),
    "waiting for KV": (lambda seen: with_engine(seen, waiting_mean=4.0, kv_usage_max=0.99), "waiting"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_fails_its_own_check(fault: str) -> None:
    spoil, check = FAULTS[fault]
    assert check in failed_checks(spoil(sound()))
    assert set(failed_checks(spoil(sound()))) <= {check, "completions", "in_flight"}


UNKNOWNS: dict[str, Callable[[Observation], Observation]] = {
    "waiting": lambda seen: with_engine(seen, waiting_mean=None),
    "preemptions": lambda seen: with_engine(seen, preemptions=None),
    "prefix_cache": lambda seen: with_engine(seen, prefix_cache_hits=None),
    "kv_bytes": lambda seen: with_engine(seen, kv_bytes=None),
    "core_sets": lambda seen: with_engine(seen, core_set_ok=None),
    "idle_arms": lambda seen: replace(seen, idle_arm_steps=None),
    "strangers": lambda seen: replace(seen, gpu=GpuFacts(foreign_pids=None)),
    "attachment": lambda seen: replace(seen, attachment=Attachment()),
}


@pytest.mark.parametrize("check", UNKNOWNS)
@pytest.mark.parametrize("backend", ["vllm", "vllm-cpu", "simulated"])
def test_an_unknown_fails_unless_the_backend_cannot_know(backend: Any, check: str) -> None:
    seen = UNKNOWNS[check](sound())
    certificate = certify(order(), seen, replace(VLLM, backend=backend))
    assert certificate.checks[check]["ok"] is None
    assert certificate.certified == (check in MAY_BE_UNKNOWN[backend])
    assert "unknown" in certificate.checks[check]["saw"] or check == "attachment"


def test_every_check_that_may_be_unknown_exists() -> None:
    assert all(names <= set(CHECKS) for names in MAY_BE_UNKNOWN.values())
    assert MAY_BE_UNKNOWN["vllm"] == frozenset()


def test_a_known_fault_beside_an_unknown_fails_even_where_unknown_is_forgiven() -> None:
    seen = sound()
    first, second = seen.engines
    spoilt = replace(
        seen, engines=(replace(first, prefix_cache_hits=None), replace(second, prefix_cache_hits=7, kv_bytes=None))
    )
    assert failed_checks(spoilt, planned=replace(VLLM, backend="simulated")) == ["prefix_cache"]


ATTACHMENTS: list[tuple[Arm, Attachment, bool | None, str]] = [
    (
        MPS_PAIR,
        Attachment((11, 12), (11,), (21,), (21,), "client-list+token"),
        False,
        r"1 of 2 .* missing: pids \[12\]",
    ),
    (MPS_PAIR, Attachment((11,), (11,), (), (), "client-list+token"), False, "1 of 2 engines are MPS clients"),
    (MPS_PAIR, Attachment((11, 12), (11, 12, 21), (), (21,), "client-list+token"), False, r"clients of the.*\[21\]"),
    (MPS_PAIR, Attachment((11, 12), (11, 12, 13), (21,), (21,), "client-list+token"), True, "2 engines are MPS"),
    (MPS_PAIR, Attachment((11, 12), (), (), (), "none"), None, "not proved either way"),
    (SLICED_PAIR, Attachment((), (21,), (22,), (21, 22), "client-list+token"), False, r"clients of the.*\[21\]"),
    (SLICED_PAIR, Attachment((), (), (22,), (21, 22), "client-list+token"), False, r"not proved.*\[21\]"),
    (SLICED_PAIR, Attachment((), (), (21,), (21,), "client-list+token"), False, "1 of 2 engines proved"),
    (SLICED_PAIR, Attachment((), (), (21, 22), (21, 22), "client-list+token"), True, "2 engines are outside MPS"),
    (SINGLE, Attachment((), (11, 12), (21, 22, 23), (21, 22, 23), "client-list+token"), True, "outside MPS"),
    (MPS_PAIR, Attachment(method="simulated"), False, "simulated, on backend vllm"),
]


@pytest.mark.parametrize(("arm", "proof", "ok", "saw"), ATTACHMENTS)
def test_attachment_is_proved_both_ways(arm: Arm, proof: Attachment, ok: bool | None, saw: str) -> None:
    found = certify(order(arm), replace(sound(arm), attachment=proof), VLLM).checks["attachment"]
    assert found["ok"] is ok
    assert re.search(saw, found["saw"])


def test_a_simulated_attachment_counts_for_the_simulation_only() -> None:
    seen = replace(sound(), attachment=Attachment(method="simulated"))
    assert failed_checks(seen, planned=replace(VLLM, backend="simulated")) == []


@pytest.mark.parametrize(
    ("clients", "in_flight", "ok"),
    [
        (256, 251.0, True),
        (256, 250.8, False),  # more than 2 % off
        (32, 31.01, True),
        (32, 30.99, False),  # more than one client off
        (4, 3.61, True),
        (4, 3.59, False),  # one client would forgive a quarter of them
        (1, 0.95, True),
        (1, 0.5, False),
    ],
)
def test_in_flight_against_clients(clients: int, in_flight: float, ok: bool) -> None:
    seen = sound(SINGLE, clients)
    seen = replace(seen, engines=(replace(seen.engines[0], in_flight_mean=in_flight),))
    planned = replace(VLLM, max_num_seqs=256)
    assert certify(order(SINGLE, concurrency=clients), seen, planned).checks["in_flight"]["ok"] is ok


@pytest.mark.parametrize("latency_s", [0.1, 0.37, 1.0, 1.3])
@pytest.mark.parametrize("clients", [1, 3, 64])
def test_littles_law_holds_for_every_closed_loop(latency_s: float, clients: int) -> None:
    seen = replace(sound(SINGLE, clients), requests=requests(clients, latency_s))
    assert certify(order(SINGLE, concurrency=clients), seen, VLLM).checks["little"]["ok"] is True


def test_littles_law_is_left_alone_with_few_completions() -> None:
    seen = replace(sound(), requests=requests(64, 0.8, gap_s=1.2))
    found = certify(order(), seen, VLLM).checks["little"]
    assert found["ok"] is True and "not judged" in found["saw"]


@pytest.mark.parametrize(
    ("kind", "changes", "ok"),
    [
        ("mixed", {"waiting_mean": 0.9}, True),
        ("mixed", {"waiting_mean": 20.0}, True),  # for its turn to be prefilled
        ("prefill", {"waiting_mean": 20.0}, True),
        ("decode", {"waiting_mean": 20.0}, False),
        ("mixed", {"waiting_mean": 20.0, "kv_usage_max": 0.99}, False),
        ("prefill", {"waiting_mean": 20.0, "kv_usage_max": 0.99}, False),
        ("mixed", {"waiting_mean": 20.0, "kv_usage_max": None}, None),
    ],
)
def test_waiting_is_for_prefill_or_for_room(kind: Any, changes: dict[str, Any], ok: bool | None) -> None:
    found = certify(order(kind=kind), with_engine(sound(), **changes), VLLM).checks["waiting"]
    assert found["ok"] is ok


def test_waiting_for_a_slot_is_for_room() -> None:
    seen = with_engine(sound(), waiting_mean=16.0)
    assert failed_checks(seen, planned=replace(VLLM, max_num_seqs=16)) == ["waiting"]


@pytest.mark.parametrize(
    ("kind", "min_completions", "done", "ok"),
    [
        ("mixed", None, 64, True),
        ("mixed", None, 62, False),
        ("decode", None, 0, True),
        ("mixed", 200, 198, False),
        ("decode", 2, 0, False),
    ],
)
def test_enough_completions(kind: Any, min_completions: int | None, done: int, ok: bool) -> None:
    seen = sound()
    seen = replace(seen, engines=tuple(replace(engine, requests_completed=done // 2) for engine in seen.engines))
    planned = replace(VLLM, min_completions=min_completions)
    assert certify(order(kind=kind), seen, planned).checks["completions"]["ok"] is ok


@pytest.mark.parametrize(("grown_mib", "ok"), [(0, True), (100, True), (-300, True), (450, False)])
def test_memory_tells_of_strangers_where_the_list_does_not(grown_mib: int, ok: bool) -> None:
    gpu = GpuFacts(foreign_pids=None, memory_used_bytes=51 * GIB + grown_mib * 2**20)
    planned = replace(VLLM, gpu_memory_bytes=51 * GIB)
    assert certify(order(), replace(sound(), gpu=gpu), planned).checks["strangers"]["ok"] is ok


def test_an_arm_that_floats_has_no_core_set() -> None:
    floating = replace(MPS_PAIR, pinned=False)
    assert failed_checks(with_engine(sound(), core_set_ok=None), order(floating)) == []


def test_context_never_fails_a_window() -> None:
    seen = sound()
    busy = tuple(replace(engine, loop_lag_p99_s=3.0, engine_core_cpu=1.0, frontend_cpu=1.0) for engine in seen.engines)
    gpu = replace(seen.gpu, power_capped_share=1.0, thermal_capped_share=1.0, sm_clock_mhz=300.0)
    assert failed_checks(replace(seen, engines=busy, gpu=gpu, steal_share=0.4, driver_cpu=1.0)) == []


def test_a_failure_is_one_line_with_its_numbers() -> None:
    certificate = certify(order(), with_engine(sound(), in_flight_mean=21.5), VLLM)
    assert certificate.failures == ("in_flight: engine 1 had 21.50 in flight for 32 clients",)


@pytest.mark.parametrize(
    ("kind", "backend", "prompt_tokens", "completed", "ok"),
    [
        ("decode", "vllm", 0, 0, True),
        ("decode", "vllm", 128, 0, False),  # a prompt was prefilled
        ("decode", "vllm", 0, 1, False),  # a request ended: the next one's prefill began
        ("decode", "simulated", 0, 9, True),
        ("decode", "simulated", 128, 0, False),
        ("mixed", "vllm", 128, 9, True),
    ],
)
def test_a_decode_window_has_no_prefill(kind: Any, backend: Any, prompt_tokens: int, completed: int, ok: bool) -> None:
    seen = replace(with_engine(sound(), requests_completed=completed), prompt_tokens=prompt_tokens)
    seen = replace(seen, engines=(replace(seen.engines[0], requests_completed=0), *seen.engines[1:]))
    found = certify(order(kind=kind), seen, replace(VLLM, backend=backend)).checks["decode_only"]
    assert found["ok"] is ok
