"""Planted courses of a series are named, and steady noise is left in peace."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from orchestrator.steadiness import carry_over, states

FLOOR = 0.015


def series(values: np.ndarray) -> pl.DataFrame:
    """values: groups × boots × windows."""
    groups, boots, windows = np.indices(values.shape)
    return pl.DataFrame(
        {"group": groups.ravel(), "boot": boots.ravel(), "order": windows.ravel(), "value": values.ravel()}
    )


def named(values: np.ndarray) -> pl.DataFrame:
    return states(series(values), ["group"], "boot", "order", "value", FLOOR)


def share(found: pl.DataFrame, state: str) -> float:
    return found["state"].eq(state).sum() / len(found)


def noise(seed: int, groups: int = 300, boots: int = 3, windows: int = 8, sd: float = 0.01) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, sd, (groups, boots, windows))


def test_white_noise_with_boot_effects_is_steady() -> None:
    boots = np.random.default_rng(1).normal(0, 0.05, (300, 3, 1))
    assert share(named(noise(2) + boots), "steady") > 0.97


def test_correlated_noise_is_mostly_steady() -> None:
    fresh = noise(3, windows=40)
    for step in range(1, fresh.shape[2]):
        fresh[:, :, step] += 0.6 * fresh[:, :, step - 1]
    assert share(named(fresh[:, :, -8:]), "steady") > 0.85


def test_a_drift_is_named_and_measured() -> None:
    found = named(noise(4) + np.linspace(0, -0.06, 8))
    assert share(found, "drifting") > 0.9
    assert found["trend"].mean() == pytest.approx(-0.06, abs=0.002)


def test_a_drift_below_the_floor_is_steady_however_significant() -> None:
    found = named(noise(5, sd=0.001) + np.linspace(0, 0.012, 8))
    assert found["trend_p"].max() < 0.001
    assert share(found, "steady") == 1.0


def test_a_step_in_one_boot_is_a_level_shift() -> None:
    values = noise(6)
    values[:, 1, 4:] += 0.12
    found = named(values)
    assert share(found, "level_shift") > 0.9
    assert found["shift"].median() == pytest.approx(0.12, abs=0.005)


def test_two_modes_that_come_and_go_are_bistable() -> None:
    modes = np.random.default_rng(7).random((300, 3, 8)) < 0.4
    found = named(noise(8) - 0.3 * modes)
    assert share(found, "bistable") > 0.97
    assert found["gap"].median() == pytest.approx(0.3, abs=0.01)
    assert found["low_share"].mean() == pytest.approx(0.4, abs=0.03)


def test_boots_in_different_modes_are_the_boots_spread() -> None:
    values = noise(9)
    values[:, 0] -= 0.3
    assert share(named(values), "bistable") == 0.0


def test_three_windows_say_nothing_of_their_course() -> None:
    assert share(named(noise(10, windows=3)), "too_short") == 1.0


@pytest.mark.parametrize("values", [np.zeros((1, 3, 8)), np.full((1, 1, 1), 2.0), np.zeros((1, 1, 4))])
def test_degenerate_series_have_a_state(values: np.ndarray) -> None:
    assert named(values)["state"].to_list()[0] in ("steady", "too_short")


def test_nulls_and_nothing_are_left_out() -> None:
    frame = series(noise(11, groups=1)).with_columns(value=pl.lit(None, pl.Float64))
    assert states(frame, ["group"], "boot", "order", "value", FLOOR).is_empty()
    assert carry_over(frame.with_columns(previous_arm=pl.lit("a")), ["group"], "boot", "value", FLOOR).is_empty()


def previous(values: np.ndarray) -> pl.DataFrame:
    order = pl.col("order") + pl.col("boot")
    return series(values).with_columns(previous_arm=pl.when(order % 2 == 0).then(pl.lit("a")).otherwise(pl.lit("b")))


def test_carry_over_is_found_with_its_sign() -> None:
    frame = previous(noise(12))
    after_a = pl.when(pl.col("previous_arm") == "a").then(0.04).otherwise(0.0)
    found = carry_over(frame.with_columns(pl.col("value") + after_a), ["group"], "boot", "value", FLOOR)
    assert len(found) > 290
    signed = found.select(pl.when(pl.col("previous_arm") == "a").then("effect").otherwise(-pl.col("effect")))
    assert signed.to_series().mean() == pytest.approx(0.04, abs=0.003)


def test_no_carry_over_is_seldom_found() -> None:
    assert len(carry_over(previous(noise(13)), ["group"], "boot", "value", 0.0)) < 0.04 * 300
