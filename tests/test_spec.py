"""Sweep files: what is refused, at which line, in which words; and that the files that ship are sound."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from orchestrator.errors import SpecError
from orchestrator.expand import expand
from orchestrator.gpus import KINDS
from orchestrator.spec import SWEEPS, SweepSpec, default_spec_path, load_spec, parse_spec
from orchestrator.spec_schema import SCHEMA_FILE, schema_text
from orchestrator.spec_sections import OWNED_ENGINE_ARGS, MeasurementSection
from orchestrator.trial import Measurement

SOUND = """\
schema_version: 1
name: sound
question: Is it?
backend: simulated
gpu: H100
engine_args: {dtype: bfloat16}
arms:
  single: {sharing: single}
  timesliced2: {sharing: timesliced, engines: 2}
  mps2: {sharing: mps, engines: 2}
baseline: single
workload: {kind: mixed, output_tokens: 128}
sweep:
  grid:
    model:
      - Qwen2.5-0.5B
      - Qwen2.5-1.5B
    prompt_tokens: [128, 1024]
    concurrency: [16, 32]
repeats: 3
measurement: {window_s: 4, max_windows: 6}
"""

BAD = {
    "unknown key": [("repeats: 3", "repeat: 3", "20: repeat: unknown key (did you mean 'repeats'?)")],
    "unknown key, far from any": [("repeats: 3", "zzz: 3", "20: zzz: unknown key; known: schema_version, name")],
    "unknown key of an arm": [
        (
            "engines: 2}\nbase",
            "engines: 2, engine: 1}\nbase",
            "10: arms.mps2.engine: unknown key (did you mean 'engines'?)",
        )
    ],
    "key of another kind of arm": [
        (
            "timesliced, engines: 2",
            "timesliced, engines: 2, active_thread_percentage: 50",
            "9: arms.timesliced2.active_thread_percentage: unknown key",
        )
    ],
    "unknown axis": [
        ("    concurrency", "    concurency", "19: sweep.grid.concurency: unknown key (did you mean 'concurrency'?)")
    ],
    "text for a number": [("repeats: 3", "repeats: '3'", "20: repeats: must be a whole number, not '3'")],
    "true for a number": [("repeats: 3", "repeats: true", "20: repeats: must be a whole number, not true")],
    "fraction for a count": [
        ("[16, 32]", "[16, 32.0]", "19: sweep.grid.concurrency[1]: must be a whole number, not 32.0")
    ],
    "number for text": [("name: sound", "name: 5", "2: name: must be text, not 5")],
    "text for a fraction": [
        ("window_s: 4", "window_s: four", "21: measurement.window_s: must be a number, not 'four'")
    ],
    "scalar for a list": [("[16, 32]", "16", "19: sweep.grid.concurrency: must be a list, not 16")],
    "list for a mapping": [("{dtype: bfloat16}", "[dtype]", "6: engine_args: must be a mapping, not a list")],
    "null for a list": [("[16, 32]", "", "19: sweep.grid.concurrency: has no value")],
    "negative tokens": [
        ("[128, 1024]", "[128, -1024]", "18: sweep.grid.prompt_tokens[1]: must be at least 1, not -1024")
    ],
    "zero tokens": [
        ("output_tokens: 128", "output_tokens: 0", "12: workload.output_tokens: must be at least 1, not 0")
    ],
    "empty grid list": [("[128, 1024]", "[]", "18: sweep.grid.prompt_tokens: is empty")],
    "value twice": [("[16, 32]", "[16, 16]", "19: sweep.grid.concurrency[1]: 16 stands twice in the list")],
    "unknown model": [("Qwen2.5-1.5B", "Qwen2.5-9B", "17: sweep.grid.model[1]: Qwen2.5-9B: no such model")],
    "one model by two names": [
        ("Qwen2.5-1.5B", "qwen/qwen2.5-0.5b", "17: sweep.grid.model[1]: 'Qwen/Qwen2.5-0.5B' stands twice in the list")
    ],
    "arm without engines": [("timesliced, engines: 2", "timesliced", "9: arms.timesliced2.engines: is missing")],
    "mps without engines": [("mps, engines: 2", "mps", "10: arms.mps2.engines: is missing")],
    "one engine does not share": [
        ("timesliced, engines: 2", "timesliced, engines: 1", "9: arms.timesliced2.engines: must be at least 2, not 1")
    ],
    "two engines are not single": [
        ("sharing: single", "sharing: single, engines: 2", "8: arms.single.engines: must be 1, not 2")
    ],
    "no such sharing": [
        (
            "sharing: single",
            "sharing: singel",
            "8: arms.single.sharing: must be mps or single or timesliced, not 'singel' (did",
        )
    ],
    "arm without sharing": [
        ("{sharing: single}", "{}", "8: arms.single.sharing: is missing: mps or single or timesliced")
    ],
    "thread percentage above 100": [
        (
            "mps, engines: 2",
            "mps, engines: 2, active_thread_percentage: 101",
            "10: arms.mps2.active_thread_percentage: must be at most 100, not 101",
        )
    ],
    "thread percentage of zero": [
        (
            "mps, engines: 2",
            "mps, engines: 2, active_thread_percentage: 0",
            "10: arms.mps2.active_thread_percentage: must be at least 1, not 0",
        )
    ],
    "arm name twice": [("  mps2:", "  single:", "10: arms.single: the key stands twice, first on line 8")],
    "key twice": [("repeats: 3", "gpu: H200", "20: gpu: the key stands twice, first on line 5")],
    "arm name with a blank": [("  mps2:", "  mps 2:", "10: arms.mps 2: must be letters, digits")],
    "residency check of no arm": [
        (
            "baseline: single",
            "baseline: single\nresidency_check: [mps22]",
            "12: residency_check[0]: 'mps22' is not an arm",
        )
    ],
    "baseline is no arm": [
        ("baseline: single", "baseline: singel", "11: baseline: 'singel' is not an arm (did you mean 'single'?)")
    ],
    "prefill with outputs": [
        ("kind: mixed", "kind: prefill", "12: workload.output_tokens: kind prefill has one output token, not 128")
    ],
    "fewer clients than engines": [
        ("[16, 32]", "[1, 32]", "19: sweep.grid.concurrency[0]: 1 client(s) cannot keep the 2 engines of an arm busy")
    ],
    "longer than the model's context": [
        ("[128, 1024]", "[128, 32700]", "18: sweep.grid.prompt_tokens[1]: Qwen/Qwen2.5-0.5B holds 32768 tokens"),
    ],
    "exclude matches nothing": [
        ("repeats: 3", "  exclude: [{prompt_tokens: 64}]", "20: sweep.exclude[0]: matches no cell")
    ],
    "exclude matches all": [("repeats: 3", "  exclude: [{kind: mixed}]", "20: sweep.exclude: leaves no cell")],
    "exclude names nothing": [("repeats: 3", "  exclude: [{}]", "20: sweep.exclude[0]: says nothing")],
    "include of a cell that is there": [
        (
            "repeats: 3",
            "  include:\n    - {model: Qwen2.5-0.5B, prompt_tokens: 128, concurrency: 16}",
            "21: sweep.include[0]: spells a cell again: model Qwen/Qwen2.5-0.5B",
        )
    ],
    "include without concurrency": [
        (
            "repeats: 3",
            "  include:\n    - {model: Qwen2.5-0.5B, prompt_tokens: 64}",
            "21: sweep.include[0]: no concurrency is given",
        )
    ],
    "axis without a value": [("    concurrency: [16, 32]\n", "", "13: sweep: no concurrency is given")],
    "zip of unequal lengths": [
        (
            "    concurrency: [16, 32]",
            "  zip: {concurrency: [1, 2], output_tokens: [1]}",
            "19: sweep.zip: lists of unequal length: output_tokens has 1, concurrency has 2",
        )
    ],
    "axis in grid and zip": [
        ("repeats: 3", "  zip: {concurrency: [64]}", "20: sweep.zip.concurrency: stands in sweep.grid too")
    ],
    "zip rows twice": [
        (
            "    concurrency: [16, 32]",
            "  zip: {concurrency: [8, 8]}",
            "19: sweep.zip: row 2 says what an earlier row says",
        )
    ],
    "min above max windows": [
        ("max_windows: 6", "min_windows: 9", "21: measurement.min_windows: min_windows (9) is above max_windows (8)")
    ],
    "max below the default min": [
        ("max_windows: 6", "max_windows: 2", "21: measurement.max_windows: min_windows (4) is above max_windows (2)")
    ],
    "profile of what is not replayed": [
        (
            "max_windows: 6",
            "profile_steps: 2",
            "21: measurement.profile_steps: only replayed steps are profiled: no cell is of a kind ending in -replay",
        )
    ],
    "window of no length": [("window_s: 4", "window_s: 0", "21: measurement.window_s: must be above 0, not 0")],
    "no repeats": [("repeats: 3", "repeats: 0", "20: repeats: must be at least 1, not 0")],
    "endless repeats": [("repeats: 3", "repeats: 1000001", "20: repeats: must be at most 1000, not 1000001")],
    "simulated GPU of any kind": [("gpu: H100", "gpu: any", "5: gpu: a simulated GPU needs a kind, not 'any'")],
    "unknown GPU": [
        ("gpu: H100", "gpu: H10O", "5: gpu: must be A100 or H100 or H200 or any, not 'H10O' (did you mean 'H100'?)")
    ],
    "a GPU without a GPU": [
        ("backend: simulated", "backend: vllm-cpu", "5: gpu: backend vllm-cpu has no GPU: write any")
    ],
    "simulation of a real GPU": [
        (
            "backend: simulated",
            "backend: vllm\nsimulation: {noise: none}",
            "5: simulation: only for backend: simulated, not vllm",
        )
    ],
    "gain planted in no arm": [
        (
            "repeats: 3",
            "simulation: {planted_gain: {mps: 1.1}}",
            "20: simulation.planted_gain.mps: 'mps' is not an arm (did you mean 'mps2'?)",
        )
    ],
    "failure of no arm": [
        (
            "repeats: 3",
            "simulation:\n  fail: {error: MpsFault,\n    arm: mps}",
            "22: simulation.fail.arm: 'mps' is not an arm (did you mean 'mps2'?)",
        )
    ],
    "dtype of unknown size": [
        ("bfloat16", "bf16", "6: engine_args.dtype: bytes per parameter of 'bf16' are not known")
    ],
    "max_model_len too short": [
        (
            "bfloat16}",
            "bfloat16, max_model_len: 1000}",
            "6: engine_args.max_model_len: must be at least 1152, the longest",
        )
    ],
    "other schema version": [("schema_version: 1", "schema_version: 2", "1: schema_version: must be 1, not 2")],
    "missing section": [("gpu: H100\n", "", "1: gpu: is missing")],
    "not finite": [("window_s: 4", "window_s: .inf", "21: measurement.window_s: .inf is not a finite number")],
}


def faults_of(text: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        parse_spec(text, "bad.yaml")
    assert caught.value.exit_status == 2
    return str(caught.value).splitlines()


def edited(*edits: tuple[str, str, str]) -> str:
    text = SOUND
    for old, new in dict.fromkeys((old, new) for old, new, _ in edits):
        assert text.count(old) == 1, f"{old!r} must stand once, or the edit is not the one that is meant"
        text = text.replace(old, new)
    return text


@pytest.mark.parametrize("edits", BAD.values(), ids=BAD.keys())
def test_a_fault_is_named_with_its_line_and_nothing_else_is(edits: list[tuple[str, str, str]]) -> None:
    faults = faults_of(edited(*edits))
    expected = [f"bad.yaml:{fault}" for _, _, fault in edits]
    assert len(faults) == len(expected), faults
    for fault, start in zip(faults, expected, strict=True):
        assert fault.startswith(start), fault


def test_the_file_that_the_table_edits_is_sound() -> None:
    spec = parse_spec(SOUND)
    assert (spec.name, list(spec.arms), spec.repeats) == ("sound", ["single", "timesliced2", "mps2"], 3)


def test_structural_and_semantic_faults_of_one_file_are_all_named() -> None:
    keys = ["unknown key", "negative tokens", "arm without engines", "baseline is no arm", "min above max windows"]
    edits = [edit for key in keys for edit in BAD[key]]
    expected = sorted((f"bad.yaml:{fault}" for _, _, fault in edits), key=lambda line: int(line.split(":")[1]))
    assert faults_of(edited(*edits)) == expected


def test_checks_across_sections_run_though_another_section_is_broken() -> None:
    edits = [
        ("repeats: 3", "repeats: none", "20: repeats"),
        ("[16, 32]", "[1, 32]", "19: sweep.grid.concurrency[0]"),
        ("kind: mixed", "kind: prefill", "12: workload.output_tokens"),
    ]
    found = [re.match(r"bad\.yaml:(\d+: [^:]+):", fault) for fault in faults_of(edited(*edits))]
    assert [match[1] for match in found if match] == [where for _, _, where in reversed(edits)]


@pytest.mark.parametrize("name", OWNED_ENGINE_ARGS)
def test_engine_arguments_that_the_method_decides_are_refused(name: str) -> None:
    everywhere = SOUND.replace("{dtype: bfloat16}", f"{{{name}: 1}}").replace(
        "{sharing: single}", f"{{sharing: single, engine_args: {{{name}: 1}}}}"
    )
    assert faults_of(everywhere) == [
        f"bad.yaml:6: engine_args.{name}: cannot be set: {OWNED_ENGINE_ARGS[name]}",
        f"bad.yaml:8: arms.single.engine_args.{name}: cannot be set: {OWNED_ENGINE_ARGS[name]}",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "bad.yaml:1: must be a mapping of keys (docs/spec.md), not empty"),
        ("- 1", "bad.yaml:1: must be a mapping of keys (docs/spec.md), not a list"),
        ("\n\njust text", "bad.yaml:3: must be a mapping of keys (docs/spec.md), not 'just text'"),
    ],
)
def test_a_file_that_is_no_mapping(text: str, message: str) -> None:
    assert faults_of(text) == [message]


def test_broken_yaml_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(SOUND.replace("[128, 1024]", "[128, 1024"), encoding="utf-8")
    with pytest.raises(SpecError, match=rf"^{re.escape(str(path))}:19: broken YAML: "):
        load_spec(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read: No such file"):
        load_spec(tmp_path / "none.yaml")
    with pytest.raises(SpecError, match="cannot be read: Is a directory"):
        load_spec(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: \xe9\n")
    with pytest.raises(SpecError, match=r"latin\.yaml:2: not UTF-8 text: byte 0xe9"):
        load_spec(tmp_path / "latin.yaml")


def test_text_and_sha_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "sound.yaml"
    path.write_text("hello: world\n", encoding="utf-8")
    path.write_text(SOUND, encoding="utf-8")
    spec = load_spec(path)
    assert spec.text == SOUND
    assert spec.source == str(path)
    assert spec.sha == parse_spec(SOUND).sha != parse_spec(SOUND + "# a comment\n").sha
    assert re.fullmatch(r"[0-9a-f]{12}", spec.sha)


def test_defaults_are_those_of_the_measurement() -> None:
    assert MeasurementSection().measurement() == Measurement()
    assert parse_spec(SOUND).measurement.measurement() == Measurement(window_s=4.0, max_windows=6)


def test_the_gpu_kinds_of_the_file_are_those_with_a_data_sheet() -> None:
    assert set(SweepSpec.json_schema()["properties"]["gpu"]["enum"]) == {*KINDS, "any"}


def test_the_published_schema_is_current() -> None:
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_text(), "run: python -m orchestrator.spec_schema --write"


SHIPPED = sorted(SWEEPS.glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_sweep_is_sound_and_says_its_question_first(path: Path) -> None:
    spec = load_spec(path)
    assert spec.name == path.stem
    comment = spec.text.split("\nschema_version", 1)[0]
    assert all(line.startswith("#") for line in comment.splitlines())
    assert "?" in comment
    assert "Cost:" in comment
    assert ("SIMULATED" in comment) == (spec.backend == "simulated")
    jsonschema.validate(yaml.safe_load(spec.text), json.loads(schema_text()))
    backend = "vllm" if spec.backend == "auto" else spec.backend
    repeats = expand(spec, backend, gpu_kind="H200" if spec.gpu == "any" else None)
    for said in re.findall(r"(\d+) trials", comment):
        assert int(said) == sum(len(repeat.measured) for repeat in repeats)


def test_the_schema_refuses_what_the_loader_refuses_in_single_keys() -> None:
    schema = json.loads(schema_text())
    for key in (
        "unknown key",
        "negative tokens",
        "arm without engines",
        "unknown GPU",
        "null for a list",
        "empty grid list",
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(yaml.safe_load(edited(*BAD[key])), schema)


def test_the_default_sweeps_are_there() -> None:
    assert default_spec_path() in SHIPPED
    assert default_spec_path(gpu=True) in SHIPPED
    assert load_spec(default_spec_path()).backend == "simulated"
    assert load_spec(default_spec_path(gpu=True)).backend == "vllm"
    assert all("trials" in load_spec(default_spec_path(gpu)).text for gpu in (False, True))


def test_the_reference_of_the_keys() -> None:
    """Its example is sound and as large as it says, its Python runs, and it names every key and owned argument."""
    page = (SWEEPS.parent / "docs" / "spec.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    repeats = expand(parse_spec(example), "vllm")
    said = re.search(r"(\d+) cells, of (\d+) arms and\s+(\d+) repeats each: (\d+) trials", page)
    assert said is not None
    cells, arms, numbers, trials = map(int, said.groups())
    assert len(repeats) == cells * numbers
    assert {len(repeat.measured) for repeat in repeats} == {arms}
    assert trials == cells * arms * numbers
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(snippet, "docs/spec.md", "exec"), {})
    schema = json.loads(schema_text())
    sections = [schema, *schema["$defs"].values()]
    keys = {key for section in sections for key in section.get("properties", {})} | set(OWNED_ENGINE_ARGS)
    assert sorted(key for key in keys if f"`{key}`" not in page) == []
