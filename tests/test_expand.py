"""From a sweep file to repeats: which cells, in which order, with which identity."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest

from orchestrator.errors import SpecError
from orchestrator.expand import expand
from orchestrator.simulated.options import ERRORS, Failure, SimulationOptions
from orchestrator.spec import parse_spec
from orchestrator.spec_sections import FailSection, SimulationSection
from orchestrator.trial import (
    Arm,
    Cell,
    Measurement,
    Mps,
    Outcome,
    Repeat,
    Single,
    TimeSliced,
    Workload,
    canonical_json,
)

HEAD = """\
schema_version: 1
name: test
question: What comes out?
backend: {backend}
gpu: {gpu}
engine_args: {{dtype: bfloat16}}
arms:
  timesliced2: {{sharing: timesliced, engines: 2}}
  single: {{sharing: single}}
  mps2: {{sharing: mps, engines: 2, active_thread_percentage: 50, cores_per_engine: 4, pinned: false}}
baseline: single
"""


def spec_text(body: str, backend: str = "simulated", gpu: str = "H100") -> str:
    return HEAD.format(backend=backend, gpu=gpu) + body


def expanded(body: str) -> tuple[Repeat, ...]:
    return expand(parse_spec(spec_text(body)), "simulated")


def cells(body: str) -> list[tuple[str, str, int, int, int]]:
    return [
        (
            repeat.cell.model.removeprefix("Qwen/Qwen2.5-"),
            repeat.cell.workload.kind,
            repeat.cell.workload.prompt_tokens,
            repeat.cell.workload.output_tokens,
            repeat.cell.concurrency,
        )
        for repeat in expanded(body)
        if repeat.number == 0
    ]


ONE = """\
sweep: {grid: {model: [Qwen2.5-0.5B], prompt_tokens: [128], output_tokens: [16], concurrency: [8]}}
repeats: 1
"""


def test_grid_is_every_combination_with_the_model_slowest() -> None:
    body = """\
sweep:
  grid: {concurrency: [8, 4], prompt_tokens: [128, 64], output_tokens: [16], model: [Qwen2.5-1.5B, Qwen2.5-0.5B]}
"""
    assert cells(body) == [
        (model, "mixed", prompt, 16, concurrency)
        for model in ("1.5B", "0.5B")
        for prompt in (128, 64)
        for concurrency in (8, 4)
    ]


def test_zip_rows_go_together_in_every_cell_of_the_grid() -> None:
    body = """\
sweep:
  grid: {model: [Qwen2.5-0.5B], concurrency: [4, 8]}
  zip: {prompt_tokens: [512, 64], output_tokens: [16, 256]}
"""
    assert cells(body) == [
        ("0.5B", "mixed", prompt, output, concurrency)
        for concurrency in (4, 8)
        for prompt, output in ((512, 16), (64, 256))
    ]


def test_include_adds_and_takes_from_workload_and_exclude_drops_partial_matches_everywhere() -> None:
    body = """\
workload: {output_tokens: 16, concurrency: 8}
sweep:
  grid: {model: [Qwen2.5-0.5B, Qwen2.5-1.5B], prompt_tokens: [64, 128]}
  include:
    - {model: Qwen2.5-0.5B, prompt_tokens: 256, concurrency: 2}
    - {model: Qwen2.5-3B, prompt_tokens: 128}
  exclude:
    - {model: qwen2.5-1.5b, prompt_tokens: 64}
    - {concurrency: 2}
"""
    assert cells(body) == [
        ("0.5B", "mixed", 64, 16, 8),
        ("0.5B", "mixed", 128, 16, 8),
        ("1.5B", "mixed", 128, 16, 8),
        ("3B", "mixed", 128, 16, 8),
    ]


def test_included_cells_lie_with_their_model_and_prefill_has_one_token_unsaid() -> None:
    body = """\
workload: {concurrency: 8}
sweep:
  zip: {model: [Qwen2.5-0.5B, Qwen2.5-1.5B], prompt_tokens: [64, 64], output_tokens: [8, 8]}
  include: [{model: Qwen2.5-0.5B, prompt_tokens: 512, kind: prefill}]
"""
    assert cells(body) == [
        ("0.5B", "mixed", 64, 8, 8),
        ("0.5B", "prefill", 512, 1, 8),
        ("1.5B", "mixed", 64, 8, 8),
    ]


def test_a_landscape_is_complete_before_it_is_measured_again() -> None:
    repeats = expanded(ONE.replace("[128]", "[128, 256]").replace("repeats: 1", "repeats: 3\nseed: 5"))
    assert [(repeat.number, repeat.cell.workload.prompt_tokens) for repeat in repeats] == [
        (number, prompt) for number in range(3) for prompt in (128, 256)
    ]
    assert [repeat.seed for repeat in repeats] == [5, 5, 6, 6, 7, 7]


def test_a_cell_may_be_measured_more_often_than_the_others() -> None:
    body = """\
repeats: 2
workload: {output_tokens: 16, concurrency: 8}
sweep:
  grid: {model: [Qwen2.5-0.5B, Qwen2.5-1.5B], prompt_tokens: [64]}
  include:
    - {model: Qwen2.5-0.5B, prompt_tokens: 128, repeats: 4}
    - {model: Qwen2.5-1.5B, prompt_tokens: 128, repeats: 1}
"""
    spec = parse_spec(spec_text(body))
    found = [
        (repeat.number, repeat.cell.model[-4:], repeat.cell.workload.prompt_tokens)
        for repeat in expand(spec, "simulated")
    ]
    assert found == [
        (0, "0.5B", 64), (0, "0.5B", 128), (0, "1.5B", 64), (0, "1.5B", 128),
        (1, "0.5B", 64), (1, "0.5B", 128), (1, "1.5B", 64),
        (2, "0.5B", 128),
        (3, "0.5B", 128),
    ]  # fmt: skip
    # What is asked for on the command line holds for all, and changes no identity.
    fewer = expand(spec.of_repeats(1), "simulated")
    assert fewer == tuple(repeat for repeat in expand(spec, "simulated") if repeat.number == 0)
    assert len(expand(spec.of_repeats(3), "simulated")) == 12


def test_the_check_of_residency_keeps_to_the_longest_cell_of_a_model() -> None:
    body = """\
repeats: 2
residency_check: [single, mps2]
workload: {output_tokens: 16, concurrency: 8}
sweep:
  include:
    - {model: Qwen2.5-0.5B, prompt_tokens: 64, repeats: 4}
    - {model: Qwen2.5-0.5B, prompt_tokens: 4096}
"""
    found = [repeat for repeat in expand(parse_spec(spec_text(body)), "simulated") if repeat.alone]
    assert [(repeat.number, repeat.alone, repeat.cell.workload.prompt_tokens) for repeat in found] == [
        (0, "single", 4096),
        (1, "mps2", 4096),
    ]


def test_a_repeat_carries_all_that_the_file_says() -> None:
    body = ONE + "measurement: {window_s: 2, tie_margin: 0.1}\nworkload: {seed: 9}\nweights: random\n"
    (repeat,) = expanded(body)
    assert repeat == Repeat(
        backend="simulated",
        cell=Cell("H100", "Qwen/Qwen2.5-0.5B", Workload("mixed", 128, 16, seed=9), 8),
        arms=(
            Arm("single", Single()),
            Arm("timesliced2", TimeSliced(2)),
            Arm("mps2", Mps(2, 50), cores_per_engine=4, pinned=False),
        ),
        engine_args={"dtype": "bfloat16", "load_format": "variance_scaled"},
        measurement=Measurement(window_s=2.0, tie_margin=0.1),
        number=0,
        seed=0,
    )
    assert repeat.baseline.name == "single"


def test_without_baseline_the_first_arm_is_it() -> None:
    text = spec_text(ONE).replace("baseline: single\n", "")
    (repeat,) = expand(parse_spec(text), "simulated")
    assert [arm.name for arm in repeat.arms] == ["timesliced2", "single", "mps2"]


@pytest.mark.parametrize(
    ("body", "carried"),
    [
        ("", None),
        ("simulation: {}\n", None),
        ("simulation: {noise: realistic, planted_gain: {}}\n", None),
        ("simulation: {noise: none}\n", {"noise": "none"}),
        ("simulation: {planted_gain: {mps2: 2}}\n", {"planted_gain": {"mps2": 2.0}}),
        (
            "simulation: {fail: {arm: mps2, error: MpsFault, at_window: 3, repeat: 0}, wall_s_per_window: 1}\n",
            {"fail": {"arm": "mps2", "error": "MpsFault", "at_window": 3, "repeat": 0}, "wall_s_per_window": 1.0},
        ),
    ],
)
def test_simulation_is_carried_where_it_changes_something(body: str, carried: object) -> None:
    (repeat,) = expanded(ONE + body)
    assert repeat.engine_args.get("simulation") == carried
    SimulationOptions.from_engine_args(repeat.engine_args)  # the simulated GPU knows every key


def test_the_file_and_the_simulated_gpu_know_the_same_keys() -> None:
    assert set(SimulationSection.model_fields) == {field.name for field in fields(SimulationOptions)}
    assert set(FailSection.model_fields) == {field.name for field in fields(Failure)}
    assert set(FailSection.json_schema()["properties"]["error"]["enum"]) == set(ERRORS)
    defaults = SimulationOptions()
    section = SimulationSection()
    assert {name: getattr(section, name) for name in SimulationSection.model_fields} == {
        field.name: getattr(defaults, field.name) for field in fields(defaults)
    }


def ids(text: str) -> list[str]:
    return [repeat.repeat_id for repeat in expand(parse_spec(text), "simulated")]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("name: test", "name: other"),
        ("What comes out?", "Nothing?"),
        ("Qwen2.5-0.5B", "qwen/qwen2.5-0.5b"),
        ("engines: 2}", "engines: 2, engine_args: {dtype: bfloat16}}"),
        ("measurement: {window_s: 2}", "measurement: {window_s: 2.0, max_windows: 8}"),
        ("{dtype: bfloat16}", '{"dtype": "bfloat16"}'),
    ],
)
def test_what_changes_no_measurement_changes_no_id(old: str, new: str) -> None:
    text = spec_text(ONE + "measurement: {window_s: 2}\n")
    assert text.count(old) == 1
    assert ids(text) == ids(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("gpu: H100", "gpu: H200"),
        ("{dtype: bfloat16}", "{dtype: float16}"),
        ("{dtype: bfloat16}", "{dtype: bfloat16, enforce_eager: true}"),
        ("baseline: single\n", ""),
        ("active_thread_percentage: 50", "active_thread_percentage: 60"),
        ("pinned: false", "pinned: true"),
        ("window_s: 2", "window_s: 3"),
        ("repeats: 1", "repeats: 1\nseed: 1"),
        ("repeats: 1", "repeats: 1\nweights: random"),
        ("repeats: 1", "repeats: 1\nworkload: {seed: 1}"),
        ("repeats: 1", "repeats: 1\nsimulation: {noise: none}"),
    ],
)
def test_what_changes_the_measurement_changes_the_id(old: str, new: str) -> None:
    text = spec_text(ONE + "measurement: {window_s: 2}\n")
    assert text.count(old) == 1
    assert set(ids(text)).isdisjoint(ids(text.replace(old, new)))


def test_gpu_any_takes_the_kind_that_was_found() -> None:
    spec = parse_spec(spec_text(ONE, backend="auto", gpu="any"))
    assert expand(spec, "vllm", "H200")[0].cell.gpu_kind == "H200"
    assert expand(spec, "vllm-cpu")[0].cell.gpu_kind == "cpu"
    with pytest.raises(SpecError, match="gpu: a simulated GPU needs a kind"):
        expand(spec, "simulated")


def test_a_spec_for_one_kind_does_not_run_on_another() -> None:
    with pytest.raises(SpecError, match="the sweep asks for H100, not H200"):
        expand(parse_spec(spec_text(ONE)), "vllm", "H200")


def test_a_simulation_does_not_run_on_a_gpu() -> None:
    with pytest.raises(SpecError, match="simulation: only for backend simulated, not vllm"):
        expand(parse_spec(spec_text(ONE + "simulation: {noise: none}\n")), "vllm")


def test_ids_are_unique_and_stable_over_expansions() -> None:
    body = ONE.replace("[128]", "[64, 128, 256]").replace("[8]", "[2, 4, 8]").replace("repeats: 1", "repeats: 3")
    first, second = expanded(body), expanded(body)
    assert [repeat.repeat_id for repeat in first] == [repeat.repeat_id for repeat in second]
    trials = [repeat.trial_id(arm) for repeat in first for arm in repeat.arms]
    assert len(set(trials)) == len(trials) == 3 * 3 * 3 * 3


GOLDEN = Repeat(
    backend="simulated",
    cell=Cell("H100", "Qwen/Qwen2.5-0.5B", Workload("mixed", 128, 128), 128),
    arms=(Arm("single", Single()), Arm("timesliced2", TimeSliced(2)), Arm("mps2", Mps(2))),
    engine_args={"dtype": "bfloat16", "load_format": "dummy"},
    measurement=Measurement(),
    number=0,
    seed=0,
)


def test_golden_ids() -> None:
    """A change here makes every stored repeat a stranger to resume: it must be meant."""
    assert GOLDEN.repeat_id == "e992edee41d9a06b"
    assert GOLDEN.trial_id(GOLDEN.arms[0]) == "65fda82ed9a525d1"
    assert GOLDEN.trial_id(GOLDEN.arms[2]) == "3978c2600defee19"


def test_text_is_not_simulated() -> None:
    with pytest.raises(SpecError, match="kind text is not simulated"):
        expanded(ONE + "workload: {kind: text}\n")


def test_what_came_later_is_part_of_an_identity_only_where_it_says_something() -> None:
    alone = replace(GOLDEN, alone="mps2")
    assert canonical_json(alone) != canonical_json(GOLDEN) and '"alone":"mps2"' in canonical_json(alone)
    assert "alone" not in canonical_json(GOLDEN)
    profiled = replace(GOLDEN, measurement=replace(GOLDEN.measurement, profile_steps=3))
    assert '"profile_steps":3' in canonical_json(profiled) and "profile_steps" not in canonical_json(GOLDEN)


def test_arms_are_measured_alone_in_turn_in_the_longest_cell() -> None:
    body = ONE.replace("[128]", "[64, 512]").replace("repeats: 1", "repeats: 3\nresidency_check: [mps2, single]")
    repeats = expanded(body)
    checks = [repeat for repeat in repeats if repeat.alone]
    assert [(repeat.number, repeat.alone) for repeat in checks] == [(0, "mps2"), (1, "single"), (2, "mps2")]
    assert {repeat.cell.workload.prompt_tokens for repeat in checks} == {512}
    assert [[arm.name for arm in repeat.measured] for repeat in checks] == [["mps2"], ["single"], ["mps2"]]
    plain = [repeat for repeat in repeats if not repeat.alone]
    assert [repeat.repeat_id for repeat in plain] == [
        repeat.repeat_id for repeat in expanded(body.replace("\nresidency_check: [mps2, single]", ""))
    ]


def test_an_arm_has_weights_of_its_own() -> None:
    text = spec_text(ONE).replace("{sharing: single}", "{sharing: single, weights: random}")
    arms = {arm.name: arm.engine_args for arm in expand(parse_spec(text), "simulated")[0].arms}
    assert arms == {"single": {"load_format": "variance_scaled"}, "timesliced2": {}, "mps2": {}}
    same = expand(parse_spec(text.replace("weights: random", "weights: dummy")), "simulated")
    assert [repeat.repeat_id for repeat in same] == [repeat.repeat_id for repeat in expanded(ONE)]


def test_canonical_json_has_one_form() -> None:
    value = {"b": (1, 2.0, None), "a": Outcome.OK, "c": {"é": True}, "m": Mps(2)}
    assert canonical_json(value) == (
        '{"a":"ok","b":[1,2.0,null],"c":{"\\u00e9":true},"m":{"active_thread_percentage":100,"engines":2,"sharing":"mps"}}'
    )


@pytest.mark.parametrize("value", [{1: 2}, {"a": {1, 2}}, [object()], {"a": b"x"}, Single])
def test_canonical_json_refuses_what_has_no_stable_form(value: object) -> None:
    with pytest.raises(TypeError):
        canonical_json(value)


def test_canonical_json_refuses_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json([math.nan])
