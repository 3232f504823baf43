"""Frames as HTML tables: everything escaped, numbers right-aligned, sortable and filterable by the page's script."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from dashboards import theme


def table(rows: pl.DataFrame, headings: Mapping[str, str], name: str, simulated: bool, sortable: bool = False) -> str:
    """`headings`: column to words, in order. `name` says what it is, for the caption; lists become lines."""
    if rows.is_empty():
        return f"<p class='none'>{html.escape(name)}: none.</p>"
    label = f"<span class='simulated-inline'>{html.escape(theme.SIMULATED)}</span>" if simulated else ""
    numeric = {column for column in headings if rows.schema[column].is_numeric()}
    head = "".join(_heading(words, column in numeric, sortable) for column, words in headings.items())
    body = "".join(
        "<tr>" + "".join(_cell(row[column], column in numeric) for column in headings) + "</tr>"
        for row in rows.iter_rows(named=True)
    )
    kind = " class='sortable'" if sortable else ""
    return (
        f"<div class='scroll' tabindex='0' role='region' aria-label='{html.escape(name)}'>"
        f"<table{kind}><caption>{html.escape(name)} {label}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def pairs(rows: Sequence[tuple[str, str]], name: str) -> str:
    """A two-column list of facts; values are plain text."""
    items = "".join(f"<dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd>" for key, value in rows)
    return f"<dl class='facts' aria-label='{html.escape(name)}'>{items}</dl>"


def csv_link(rows: pl.DataFrame, filename: str) -> str:
    """A link that downloads the frame, lists joined with `; `, from the page itself."""
    flat = rows.with_columns(pl.selectors.list().list.join("; "), pl.selectors.float().round_sig_figs(8))
    data = base64.b64encode(flat.write_csv().encode()).decode()
    return (
        f"<a class='download' download='{html.escape(filename)}' href='data:text/csv;charset=utf-8;base64,{data}'>"
        f"Download {html.escape(filename)} ({len(rows):,} rows)</a>"
    )


def _heading(words: str, numeric: bool, sortable: bool) -> str:
    inner = f"<button type='button'>{html.escape(words)}</button>" if sortable else html.escape(words)
    sort = " aria-sort='none'" if sortable else ""
    return f"<th scope='col'{' class=number' if numeric else ''}{sort}>{inner}</th>"


def _cell(value: Any, numeric: bool) -> str:
    if value is None:
        return f"<td class='{'number ' if numeric else ''}empty' data-value=''></td>"
    if isinstance(value, list):
        return f"<td class='lines'>{'<br>'.join(html.escape(str(item)) for item in value)}</td>"
    if numeric:
        shown = f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
        return f"<td class='number' data-value='{value}'>{shown}</td>"
    text = html.escape(str(value))
    return f"<td class='{text}'>{text}</td>" if text in theme.VERDICT_MARKS else f"<td>{text}</td>"
