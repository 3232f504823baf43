"""The gate on skips, seen in runs of pytest of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ALLOWED_SKIPS, allowed_reasons

HERE = Path(__file__).parent

CASES = {
    "listed": ("import pytest\ndef test_one(): pytest.skip('no GPU here')\n", 0),
    "unlisted": ("import pytest\ndef test_one(): pytest.skip('not today')\n", 1),
    "unlisted, as a mark": ("import pytest\n@pytest.mark.skipif(True, reason='not today')\ndef test_one(): ...\n", 1),
    "a whole module": ("import pytest\npytest.skip('not today', allow_module_level=True)\n", 1),
    "expected failure": ("import pytest\n@pytest.mark.xfail(reason='known')\ndef test_one(): assert False\n", 0),
    "passes": ("def test_one(): ...\n", 0),
}


@pytest.mark.parametrize("case", CASES)
def test_in_ci_only_listed_skips_pass(case: str, tmp_path: Path) -> None:
    body, status = CASES[case]
    # A second test passes, so that a module that skips whole is not "nothing collected".
    (tmp_path / "test_passing.py").write_text("def test_passing(): ...\n", encoding="utf-8")
    (tmp_path / "test_case.py").write_text(body, encoding="utf-8")
    ended = pytest_in(tmp_path, CI="true")
    assert ended.returncode == status, ended.stdout
    assert ("not today" in ended.stdout) == (status == 1)


def test_elsewhere_a_skip_is_only_a_skip(tmp_path: Path) -> None:
    (tmp_path / "test_case.py").write_text(CASES["unlisted"][0], encoding="utf-8")
    assert pytest_in(tmp_path, CI="").returncode == 0


def test_every_accepted_skip_says_why() -> None:
    assert allowed_reasons(ALLOWED_SKIPS.read_text(encoding="utf-8"))
    with pytest.raises(ValueError, match="does not say why"):
        allowed_reasons("no GPU here\n")


def pytest_in(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """pytest on `folder` alone, with this project's conftest and no plugin."""
    arguments = ["-q", "-p", "no:cacheprovider", "-p", "tests.conftest", "--rootdir", str(folder), "-c", os.devnull]
    # Plugins take twice as long to import as all the rest.
    alone = os.environ | environment | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", *arguments, str(folder)],
        cwd=HERE.parent, env=alone, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
