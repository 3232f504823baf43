"""YAML read as plain values, with the line of every key and list entry, and with every fault rather than the first.

The scalars are those of YAML 1.2's core schema: `on`, `no` and `1:30` are text, `1e3` is a number, `010` is ten.
What a sweep file has no use for and what hides mistakes is a fault: a key twice, keys that are not text, anchors and
aliases, tags, a second document, `.nan` and `.inf`.

    >>> read_yaml("a:\\n  b: [1, no]").lines[("a", "b", 1)]
    2
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

# Where a value stands: keys and list positions from the root.
KeyPath = tuple[str | int, ...]

_NULL = re.compile(r"(?:~|null|Null|NULL|)\Z")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
_INT = re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z")
_NOT_FINITE = re.compile(r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z")
# Digits of 2**63: what the engines and the store can hold; a longer one becomes a float, which no count takes.
_LONGEST_INT = 19


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong. `line` counts from 1; `path` is empty where the fault is the file's."""

    line: int
    path: KeyPath
    text: str


@dataclass(frozen=True, slots=True)
class YamlFile:
    """value: of dicts, lists, str, int, float, bool and None. lines: of every key and list entry, `()` the root."""

    value: Any
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()

    def line(self, path: KeyPath) -> int:
        """The line of `path`, or of the nearest thing around it that stands in the file."""
        while path not in self.lines and path:
            path = path[:-1]
        return self.lines.get(path, 1)


def read_yaml(text: str) -> YamlFile:
    """Parse one document. Never raises for what `text` holds: broken YAML comes back as one fault and value None."""
    text = text.removeprefix("\ufeff")
    if forbidden := yaml.reader.Reader.NON_PRINTABLE.search(text):
        line = 1 + text.count("\n", 0, forbidden.start())
        problem = f"broken YAML: the character U+{ord(forbidden.group()):04X} is not allowed"
        return YamlFile(None, faults=(Fault(line, (), problem),))
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        return YamlFile(None, faults=(Fault(1 + (mark.line if mark else 0), (), f"broken YAML: {problem}"),))
    except RecursionError:
        return YamlFile(None, faults=(Fault(1, (), "broken YAML: nested too deeply"),))
    finally:
        loader.dispose()
    if root is None:
        return YamlFile(None)
    walk = _Walk()
    value = walk.value(root, ())
    return YamlFile(value, walk.lines, tuple(walk.faults))


class _Loader(yaml.SafeLoader):
    """SafeLoader, used up to the node graph; anchors, aliases and tags are refused where they stand."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        for what in ("anchor", "tag"):
            if getattr(event, what, None) is not None:
                problem = f"{what}s are not supported: write the value out"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)


@dataclass(slots=True)
class _Walk:
    """Turns nodes into values and notes lines and faults on the way."""

    lines: dict[KeyPath, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self.scalar(node, path)

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self.scalar(key_node, path) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                shown = repr(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "a list or a mapping"
                self.fault(key_node, path, f"keys are text, not {shown}: put it in quotes")
                continue
            here = (*path, key)
            if key in found:
                self.fault(key_node, here, f"the key stands twice, first on line {self.lines[here]}")
                continue
            self.lines[here] = key_node.start_mark.line + 1
            found[key] = self.value(value_node, here)
        return found

    def scalar(self, node: yaml.ScalarNode, path: KeyPath) -> str | int | float | bool | None:
        text: str = node.value
        if node.style is not None:  # quoted or a block: text, whatever it looks like
            return text
        if _NULL.match(text):
            return None
        if _BOOL.match(text):
            return text.lower() == "true"
        if _INT.match(text) and len(text) <= _LONGEST_INT:
            return int(text, 10 if text[:2] not in ("0o", "0x") else 0)
        number = float(text) if _FLOAT.match(text) else None
        if _NOT_FINITE.match(text) or (number is not None and math.isinf(number)):
            self.fault(node, path, f"{text[:_LONGEST_INT]} is not a finite number")
            return None
        return text if number is None else number

    def fault(self, node: yaml.Node, path: KeyPath, text: str) -> None:
        self.faults.append(Fault(node.start_mark.line + 1, path, text))
