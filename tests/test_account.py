"""Accounts of held time: what they add up to, and what of them stands in a store."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator import account
from orchestrator.account import Account, read_accounts, shares
from orchestrator.errors import BootError
from orchestrator.store import ResultStore


class Up:
    """As much of a deployment as an account looks at."""

    class Facts:
        gpu_uuid = "GPU-0"

    boots = {"single": Facts()}  # noqa: RUF012


@contextmanager
def opened(clock: list[float], boot_s: float, teardown_s: float, fails: bool = False) -> Iterator[Up]:
    clock[0] += boot_s
    if fails:
        raise BootError("out of memory")
    yield Up()
    clock[0] += teardown_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(account.time, "monotonic", lambda: now[0])
    return now


def test_the_parts_add_up_over_several_deployments(clock: list[float]) -> None:
    one = Account("block", "host", "", 0.0)
    for _ in range(2):
        with one.held(opened(clock, boot_s=20.0, teardown_s=3.0)):
            clock[0] += 50.0
            one.windows_s += 30.0
    assert (one.held_s, one.boot_s, one.teardown_s, one.windows_s, one.between_s) == (146.0, 40.0, 6.0, 60.0, 40.0)
    assert one.gpu_uuid == "GPU-0"
    assert one.line() == ("block block: held the GPU for 146 s: boot 40, windows 60 (41%), between them 40, teardown 6")


def test_a_boot_that_fails_held_the_gpu_too(clock: list[float]) -> None:
    one = Account("block", "host", "", 0.0)
    with pytest.raises(BootError), one.held(opened(clock, boot_s=12.0, teardown_s=0.0, fails=True)):
        pass
    assert (one.held_s, one.windows_s) == (12.0, 0.0)


def test_accounts_stand_in_the_store_and_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ResultStore.open(str(tmp_path / "store"), create=True)
    for began, windows_s in ((2.0, 60.0), (1.0, 20.0)):
        Account("block", "host", "GPU-0", began, held_s=100.0, boot_s=10.0, windows_s=windows_s, teardown_s=5.0).keep(
            store, "a sweep"
        )
    kept = read_accounts(store, "a sweep")
    assert kept["began_unix_s"].to_list() == [1.0, 2.0]
    share = shares(kept)
    assert (share["held_s"], share["windows"], share["boot"]) == (200.0, 0.4, 0.1)
    assert share["between"] == pytest.approx(0.45)
    assert read_accounts(store, "another").is_empty() and shares(read_accounts(store, "another"))["windows"] == 0.0


NOT_ACCOUNTS = {
    "torn": b'{"block_id": "b',
    "no text": b"\xff\xfe",
    "no object": b"[1]",
    "other fields": b'{"gpu": "GPU-0"}',
    "another type": b'{"block_id": "b", "host": "h", "gpu_uuid": "g", "began_unix_s": "noon"}',
}


@pytest.mark.parametrize("damage", NOT_ACCOUNTS.values(), ids=NOT_ACCOUNTS)
def test_an_object_that_is_no_account_is_left_out_and_told_of(damage: bytes, tmp_path: Path) -> None:
    store = ResultStore.open(str(tmp_path / "store"), create=True)
    Account("block", "host", "GPU-0", 1.0, held_s=100.0).keep(store, "s")
    store.objects.create("accounts/sweep=s/odd.json", damage)
    assert read_accounts(store, "s").height == 1
    assert len(store.faults) == 1 and "accounts/sweep=s/odd.json" in store.faults[0]


def test_the_command_tells_what_it_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = shutil.copytree(Path(__file__).parent.parent / "reference" / "h200-pair", tmp_path / "store")
    torn = record / "accounts" / "sweep=smoke-gpu" / "torn.json"
    torn.parent.mkdir(parents=True, exist_ok=True)
    torn.write_text("{")
    assert account.main([str(record)]) == 0
    assert "accounts/sweep=smoke-gpu/torn.json" in capsys.readouterr().err


def test_the_command_says_what_it_does_not_know(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    record = Path(__file__).parent.parent / "reference" / "h200"
    assert account.main([str(record)]) == 0
    out = capsys.readouterr().out
    assert "capture-size: no account was kept" in out and "controls: 6 blocks held a GPU for" in out
    assert account.main([str(tmp_path / "nowhere")]) == 2
    assert "no store" in capsys.readouterr().err
