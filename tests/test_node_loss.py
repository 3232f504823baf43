"""A short storm; `python -m tests.node_loss --kills 300` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.node_loss import storm


@pytest.mark.long
def test_hosts_nodes_and_drivers_may_die_and_every_trial_is_there_once(tmp_path: Path) -> None:
    report = storm(tmp_path, kills=12, seed=11, nodes=2, cpus=1, repeats=5)
    assert report.sound, vars(report)
    assert sum(report.kills.values()) >= 12 and len(report.kills) > 1
