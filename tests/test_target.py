"""Where a sweep runs, for what is asked and what is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import ClusterError
from orchestrator.spec import SweepSpec, load_spec, parse_spec
from orchestrator.sweep import main
from orchestrator.target import foregone, gpus_here, resolve


def spec(backend="auto", gpu="H100") -> SweepSpec:
    return parse_spec(
        f"""\
schema_version: 1
name: where
question: Where?
backend: {backend}
gpu: {gpu}
arms: {{single: {{sharing: single}}, mps2: {{sharing: mps, engines: 2}}}}
sweep: {{grid: {{model: [Qwen2.5-0.5B], prompt_tokens: [64], output_tokens: [8], concurrency: [4]}}}}
""",
        "where.yaml",
    )


@pytest.mark.parametrize(
    ("backend", "gpu", "asked", "gpus", "found"),
    [
        ("auto", "H100", None, {}, ("simulated", "H100")),
        ("auto", "any", None, {}, ("simulated", "H100")),
        ("auto", "A100", None, {}, ("simulated", "A100")),
        ("auto", "H200", None, {"H200": 8}, ("vllm", "H200")),
        ("auto", "any", None, {"A100": 1}, ("vllm", "A100")),
        ("auto", "any", None, {"A100": 1, "Tesla V100": 4}, ("vllm", "A100")),
        ("auto", "H200", "simulated", {"H200": 8}, ("simulated", "H200")),
        ("simulated", "H100", None, {"H200": 8}, ("simulated", "H100")),
        ("simulated", "H100", "vllm", {"H100": 1, "H200": 1}, ("vllm", "H100")),
        ("simulated", "H100", "auto", {"H100": 1}, ("vllm", "H100")),
        ("vllm-cpu", "any", None, {}, ("vllm-cpu", "cpu")),
        ("auto", "any", "vllm-cpu", {"H200": 1}, ("vllm-cpu", "cpu")),
    ],
)
def test_the_command_line_outranks_the_file_and_the_cluster_decides_the_rest(backend, gpu, asked, gpus, found):
    target = resolve(spec(backend, gpu), asked, gpus)
    assert (target.backend, target.kind.name) == found


@pytest.mark.parametrize(
    ("gpu", "gpus", "message"),
    [
        ("H100", {}, "where.yaml wants a GPU of kind H100, the cluster has no GPU"),
        ("H100", {"H200": 2}, "wants a GPU of kind H100, the cluster has {'H200': 2}"),
        ("any", {}, "says `gpu: any`, and the cluster has no GPU: name one of A100, H100, H200"),
        ("any", {"H100": 1, "H200": 2}, "the cluster has {'H100': 1, 'H200': 2}: name one of"),
        ("any", {"Tesla V100": 1}, "the cluster has {'Tesla V100': 1}: name one of"),
    ],
)
def test_a_gpu_that_is_not_there_is_an_error_that_names_what_is(gpu, gpus, message):
    with pytest.raises(ClusterError) as caught:
        resolve(spec(gpu=gpu), "vllm", gpus)
    assert message in str(caught.value) and "--backend simulated" in str(caught.value)


@pytest.mark.parametrize(
    ("backend", "gpu", "asked", "known"),
    [
        ("auto", "any", None, False),
        ("vllm", "H100", None, False),
        ("simulated", "H100", None, True),
        ("vllm-cpu", "any", None, True),
        ("vllm", "H100", "simulated", True),
        ("simulated", "H100", "vllm", False),
    ],
)
def test_only_real_gpus_are_asked_for(backend, gpu, asked, known):
    assert foregone(spec(backend, gpu), asked) is known


def test_gpus_of_this_machine_are_counted_by_kind():
    assert all(count > 0 for count in gpus_here().values())


@pytest.mark.parametrize("path", sorted(Path("sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_sweep_file_is_planned_for_a_gpu_that_is_not_here_and_all_of_it_fits(path, tmp_path, capsys):
    assert main([str(path), "--dry-run", "--gpu", "H200", "--store", str(tmp_path / "none")]) == 0
    said = capsys.readouterr().out
    assert "does not fit: 0 trials" in said
    assert load_spec(path).backend == "simulated" or "H200" in said
