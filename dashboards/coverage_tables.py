"""The tables of docs/method.md, each a function of the record of `orchestrator.coverage`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import polars as pl

from dashboards.marked_page import MARKED

DECIDED = 0.90
HARD, HARDER = 0.05, 0.02
Record = dict[str, Any]


def with_tables(page: str, record: Record) -> str:
    """`page` with every marked table written anew. Raises KeyError for a table that does not exist."""
    return MARKED.sub(lambda found: f"{found[1]}\n{TABLES[found[2]](record)}\n\n{found[3]}", page)


def headline(record: Record) -> str:
    coverage, cost = record["coverage"].filter("recorded"), record["cost"].filter(pl.col("noise") == "all")
    by_noise = _shares(coverage.group_by("noise").agg(pl.col("sweeps", "held").sum()), "held")
    least = by_noise.sort("share").row(0, named=True)
    equal = record["equal_arms"].filter("recorded", pl.col("noise").str.ends_with("twice"))
    real = record["recorded_equal_arms"]
    real_text = "none is recorded yet"
    if real.height:
        own = real.filter(pl.col("metric") == "throughput", pl.col("boots") >= 3)
        real_text = (
            f"{own['called'].sum()} of {own.height} recorded on a GPU" if own.height else "no three boots recorded"
        )
    power = _reached(record, "as recorded", HARD)
    met = power.filter(pl.col("max_windows").is_not_null())
    boots, fixed = cost["boots"][0], cost["fixed_boots"][0]
    windows, fixed_windows = cost["windows"][0], cost["fixed_windows"][0]
    held, sweeps = coverage["held"].sum(), coverage["sweeps"].sum()
    winners, tries = equal["winners"].sum(), equal["sweeps"].sum()
    return _table(
        ("what is asked", "what was found"),
        [
            ("a 95 % interval holds the truth in 94 % of sweeps or more, under the sequential rule",
             f"{_part(held, sweeps)} of {sweeps:,}; {_percent(least['share'])} in the worst noise"),
            ("equal arms at zero margin: a winner in 5 % or less",
             f"{_part(winners, tries)} of {tries:,} simulated; {real_text}"),
            ("a gain of 5 % beyond the margin decided in 90 % or more, within 16 boots and 64 windows an arm and boot",
             f"in {met.height} of {power.height} noises{_plans(power)}"),
            ("boots spent on a landscape of gains, of a fixed design of equal power: half or less",
             f"{_percent(boots / fixed)} ({boots:.1f} of {fixed})"),
            ("windows, likewise", f"{_percent(windows / fixed_windows)} ({windows:.0f} of {fixed_windows})"),
        ],
    )  # fmt: skip


def _plans(power: pl.DataFrame) -> str:
    """What it takes where the sequential rule does not get there: a number of boots fixed beforehand."""
    plans = power.filter(pl.col("max_windows").is_null())["planned"].to_list()
    words = [f"a plan of {boots} boots" if boots else "more than 48 boots" for boots in plans]
    return f"; the rest take {', '.join(words)}" if words else ""


def noise(record: Record) -> str:
    model = record["noise"]
    cores, speed, rest = model["cores"], model["speed"], model["rest"]
    shape = model["rest_shape"]
    kurtosis = sum(v**4 for v in shape) / len(shape)
    slow, fast, low = cores["low_mops"], cores["high_mops"], _percent(cores["low_share"])
    readings = f"{cores['readings']:,} readings of an idle machine's cores"
    windows = f"{model['windows']} windows"
    return _table(
        ("part", "value", "taken from"),
        [
            ("two speeds of a core", f"{slow:.1f} and {fast:.1f} Mops, {low} of the time the lower", readings),
            ("they dwell", f"{cores['low_dwell_s']:.2f} s and {cores['high_dwell_s']:.2f} s on average", "the same"),
            ("which leaves in a window's mean", f"{_percent(cores['window_sd'])} (sd)",
             f"the same, over {model['window_s']:.0f} s"),
            ("core speed: share of the variance that lasts a boot", f"{speed['boot']:.2f}", windows),
            ("core speed: correlation from window to window", f"{speed['phi']:.2f}",
             f"the same, {model['spacing_s']:.1f} s apart"),
            ("core speed: how far two arms feel the same", f"{speed['shared']:.2f}", "the same"),
            ("rest: share that lasts a boot; window to window", f"{rest['boot']:.2f}; {rest['phi']:.2f}", "the same"),
            ("rest: kurtosis (3 is Gaussian)", f"{kurtosis:.1f}", "the same; drawn by its own quantiles"),
            ("drift common to the arms over a boot", f"{_percent(model['drift_sd'])} (root mean square)",
             "all resident windows"),
        ],
    )  # fmt: skip


def fit(record: Record) -> str:
    """The model against what it was fitted to: the spread of boots' contrasts, drawn and recorded."""
    drawn = record["power"].filter(pl.col("cores") == "as recorded", pl.col("beyond") == HARD)
    rows = []
    for world in record["noise"]["worlds"]:
        for arm, measured in zip(world["candidates"], world["measured_sd"], strict=True):
            name = f"{world['name']}: {arm['arm']} / {world['baseline']['arm']}"
            own = drawn.filter(pl.col("noise") == name)
            at = {row["max_windows"]: _percent(row["contrast_sd"]) for row in own.iter_rows(named=True)}
            slopes = f"{world['baseline']['slope']:.2f}, {arm['slope']:.2f}"
            rest = f"{_percent(world['baseline']['rest_sd'])}, {_percent(arm['rest_sd'])}"
            seen = f"{_percent(measured)} ({world['boots']} boots of {world['rounds']})"
            rows.append((name, slopes, rest, seen, at[4], at[16], at[64]))
    head = ("recorded cell and arms", "slope on core speed, baseline and arm", "rest of a window, likewise",
            "boots' contrasts, recorded", "drawn, 4 windows", "16", "64")  # fmt: skip
    return _table(head, rows)


def coverage(record: Record) -> str:
    own = (
        record["coverage"]
        .group_by("noise", "recorded", maintain_order=True)
        .agg(pl.col("sweeps", "held", "held_always", "decided", "wrong", "boots").sum())
    )
    rows = []
    for row in own.iter_rows(named=True):
        n = row["sweeps"]
        shares = [_part(row[name], n) for name in ("held", "held_always", "decided", "wrong")]
        rows.append((row["noise"], f"{n:,}", *shares, f"{row['boots'] / n:.1f}"))
    return _table(("noise", "sweeps", "held at the stop", "held at every look", "decided", "wrongly", "boots"), rows)


def equal_arms(record: Record) -> str:
    rows = [
        (row["noise"], f"{row['sweeps']:,}", _part(row["winners"], row["sweeps"]))
        for row in record["equal_arms"].iter_rows(named=True)
    ]
    return _table(("noise", "sweeps", "a winner"), rows)


def recorded(record: Record) -> str:
    # One boot has no interval, and nothing that could be called.
    real = record["recorded_equal_arms"].filter(pl.col("boots") > 1, metric="throughput")
    if real.is_empty():
        return "No comparison of an arm with itself over boots is in the record yet."
    rows = [
        (row["store"], row["sweep"], row["model"].split("/")[-1],
         f"{row['kind']} {row['prompt_tokens']}/{row['output_tokens']}, {row['concurrency']}",
         f"{row['arm']} / {row['baseline']}", row["residency"], str(row["boots"]), _number(row["ratio"]),
         f"{_number(row['ci_low'])} to {_number(row['ci_high'])}", "yes" if row["called"] else "no")
        for row in real.iter_rows(named=True)
    ]  # fmt: skip
    head = ("store", "sweep", "model", "cell, clients", "arms", "residency", "boots", "ratio", "interval at the end",
            "a winner")  # fmt: skip
    return _table(head, rows)


def power(record: Record) -> str:
    rows = []
    for noise in record["power"]["noise"].unique(maintain_order=True):
        cells: list[str] = []
        for cores, beyond in (
            ("as recorded", HARD),
            ("one speed", HARD),
            ("as recorded", HARDER),
            ("one speed", HARDER),
        ):
            own = _reached(record, cores, beyond).filter(pl.col("noise") == noise).row(0, named=True)
            cells.append(_cell(own))
        rows.append((noise, *cells))
    head = ("noise", "+5 %, as recorded", "+5 %, cores at one speed", "+2 %, as recorded", "+2 %, cores at one speed")
    return _table(head, rows)


def _cell(own: dict[str, Any]) -> str:
    if own["max_windows"] is not None:
        return f"{own['max_windows']} windows, {own['boots_mean']:.1f} boots ({_percent(own['share'])})"
    planned = f"{own['planned']:.0f} boots in a plan" if own["planned"] else "no plan of 48 boots"
    return f"not reached: {_percent(own['best'])} at 64 windows; {planned}"


def _reached(record: Record, cores: str, beyond: float) -> pl.DataFrame:
    """By noise: the fewest windows an arm and boot at which DECIDED is reached, or nulls and how far the most get."""
    own = _shares(record["power"], "decided").filter(pl.col("cores") == cores, pl.col("beyond") == beyond)
    met = own.filter(pl.col("share") >= DECIDED).sort("max_windows").unique("noise", keep="first", maintain_order=True)
    most = own.sort("max_windows").group_by("noise", maintain_order=True).agg(
        best=pl.col("share").last(), planned=pl.col("planned_boots_for_90").last()
    )  # fmt: skip
    kept = met.select("noise", "max_windows", "boots_mean", "windows_mean", "share")
    return most.join(kept, on="noise", how="left", maintain_order="left")


def cost(record: Record) -> str:
    rows = [
        (row["noise"], _percent(row["power"]), f"{row['boots']:.1f} / {row['fixed_boots']}",
         _percent(row["boots"] / row["fixed_boots"]), f"{row['windows']:.0f} / {row['fixed_windows']}",
         _percent(row["windows"] / row["fixed_windows"]), _percent(row["boots_at_point"] / row["fixed_boots"]))
        for row in record["cost"].iter_rows(named=True)
    ]  # fmt: skip
    head = (
        "noise",
        "power at +5 %",
        "boots: rule / fixed",
        "share",
        "windows: rule / fixed",
        "share",
        "boots at +5 % alone",
    )
    return _table(head, rows)


def equal_speed(record: Record) -> str:
    rows = [
        (row["noise"], str(row["boots"]), _part(row["held"], row["sweeps"]),
         f"{100 * row['bias']:+.2f} ± {100 * row['bias_se']:.2f} %".replace("-", "−"),
         f"{row['sd'] / row['headline_sd']:.2f}")
        for row in record["equal_speed"].iter_rows(named=True) if row["boots"] != 4
    ]  # fmt: skip
    return _table(("noise", "boots", "held", "bias ± its error", "spread beside the headline's"), rows)


TABLES: dict[str, Callable[[Record], str]] = {
    table.__name__: table for table in (headline, noise, fit, coverage, equal_arms, recorded, power, cost, equal_speed)
}


def _shares(frame: pl.DataFrame, count: str) -> pl.DataFrame:
    return frame.with_columns(share=pl.col(count) / pl.col("sweeps"))


def _part(hits: int, tries: int) -> str:
    return _percent(hits / tries)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
