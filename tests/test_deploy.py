"""The files under deploy/: in form, and saying of Ray's flags what the project itself sets."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.cluster import RAYLET_ENVIRONMENT

DEPLOY = Path(__file__).parent.parent / "deploy"


@pytest.fixture
def cluster() -> dict[str, Any]:
    documents = list(yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text()))
    (found,) = [document for document in documents if document["kind"] == "RayCluster"]
    assert isinstance(found, dict)
    return found["spec"]  # type: ignore[no-any-return]


def templates(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def test_the_cluster_asks_for_a_token_and_no_privilege(cluster: dict[str, Any]) -> None:
    assert cluster["authOptions"] == {"mode": "token"}
    for pod in templates(cluster):
        assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
        assert not {"hostPID", "hostIPC", "hostNetwork"} & pod.keys()
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_pods_have_cores_of_their_own_and_raylets_the_right_flags(cluster: dict[str, Any]) -> None:
    for pod in templates(cluster):
        for container in pod["containers"]:
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert container["resources"]["limits"]["cpu"].isdigit()
            environment = {each["name"]: each["value"] for each in container["env"]}
            assert RAYLET_ENVIRONMENT.items() <= environment.items()


def test_the_image_and_the_script_set_the_same_flags() -> None:
    for name in ("Containerfile", "slurm.sh"):
        text = (DEPLOY / name).read_text()
        assert {f"{key}={value}" for key, value in RAYLET_ENVIRONMENT.items()} <= set(re.findall(r"\bRAY_\w+=\d", text))


def test_the_script_is_a_script() -> None:
    subprocess.run(["bash", "-n", DEPLOY / "slurm.sh"], check=True)


def test_no_secret_stands_in_them() -> None:
    for path in DEPLOY.iterdir():
        assert not re.search(r"(?i)(secret_access_key|auth_token)\s*[:=]\s*['\"]?\w{8,}", path.read_text())
