"""The YAML reader: scalars of the core schema, lines, and faults where they stand."""

from __future__ import annotations

import pytest

from orchestrator.yaml_lines import read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("-7", -7),
        ("010", 10),
        ("0o10", 8),
        ("0x10", 16),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("4.", 4.0),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("on", "on"),
        ("no", "no"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("'5'", "5"),
        ("1_000", "1_000"),
        ("<<", "<<"),
    ],
)
def test_scalars_of_the_core_schema(text: str, value: object) -> None:
    found = read_yaml(f"key: {text}")
    assert found.faults == ()
    assert found.value == {"key": value}
    assert type(found.value["key"]) is type(value)


def test_lines_of_keys_and_entries() -> None:
    found = read_yaml("# comment\na:\n  b: [1,\n    2]\n  c:\n    - x\n    - d: 1\n")
    assert found.value == {"a": {"b": [1, 2], "c": ["x", {"d": 1}]}}
    lines = {("a",): 2, ("a", "b"): 3, ("a", "b", 0): 3, ("a", "b", 1): 4, ("a", "c"): 5, ("a", "c", 1, "d"): 7}
    assert {path: found.line(path) for path in lines} == lines
    assert found.line(("a", "c", 9, "nothing")) == 5


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: [1, 2\nc: 3\n", 3, "broken YAML"),
        ("a: 1\n b: 2\n", 2, "broken YAML"),
        ("a: 1\n\tb: 2\n", 2, "broken YAML"),
        ("a: 1\n---\nb: 2\n", 2, "another document"),
        ("a: 1\nb: &x 2\n", 2, "anchors are not supported"),
        ("a: 1\nb: *x\n", 2, "anchors are not supported"),
        ("a: 1\nb: !!python/name:os.system x\n", 2, "tags are not supported"),
        ("a: 1\n2: x\n", 2, "keys are text"),
        ("a: 1\n? [b]\n: 2\n", 2, "keys are text"),
        ("a: 1\nb: 2\na: 3\n", 3, "stands twice, first on line 1"),
        ("a:\n  - b: 1\n    b: 2\n", 3, "stands twice, first on line 2"),
        ("a: 1\nb: .nan\n", 2, "not a finite number"),
        ("a: 1\nb: 1e999\n", 2, "not a finite number"),
        ("a: 1\nb: \x07\n", 2, "U+0007"),
        ("a: " + "[" * 5000, 1, "nested too deeply"),
    ],
)
def test_faults_with_their_lines(text: str, line: int, words: str) -> None:
    (fault,) = read_yaml(text).faults
    assert fault.line == line
    assert words in fault.text


def test_all_faults_of_a_file_at_once() -> None:
    found = read_yaml("a: 1\na: 2\nb:\n  c: .inf\n  c: 1\n")
    assert [(fault.line, fault.path) for fault in found.faults] == [(2, ("a",)), (4, ("b", "c")), (5, ("b", "c"))]


@pytest.mark.parametrize("text", ["", "# only a comment\n"])
def test_an_empty_file_has_no_value(text: str) -> None:
    assert read_yaml(text).value is None


def test_a_byte_order_mark_is_no_part_of_the_first_key() -> None:
    assert read_yaml("\ufeffa: 1").value == {"a": 1}
