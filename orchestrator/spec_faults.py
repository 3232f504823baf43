"""What pydantic found wrong, as faults with a path into the file and words for the person who wrote it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from orchestrator.spec_sections import Section
from orchestrator.yaml_lines import Fault, KeyPath, YamlFile

_EXPECTED = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
}
_BOUNDS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}


def structural_faults(error: ValidationError, model: type[Section], file: YamlFile) -> Iterator[Fault]:
    """One fault for each thing wrong. A list is not called too short because its entries are wrong."""
    schema = model.json_schema()
    details = error.errors(include_url=False)
    paths = [_path(detail, schema) for detail in details]
    for detail, path in zip(details, paths, strict=True):
        if detail["type"] == "too_short" and any(len(p) > len(path) and p[: len(path)] == path for p in paths):
            continue
        if detail["type"] == "faults":
            for below, text in detail["ctx"]["found"]:
                yield Fault(file.line((*path, *below)), (*path, *below), text)
        else:
            yield Fault(file.line(path), path, _text(detail, schema))


def did_you_mean(word: object, right: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the nearest of `right`, or nothing."""
    by_lower = {choice.lower(): choice for choice in right}
    near = difflib.get_close_matches(str(word).lower(), by_lower, n=1, cutoff=0.6)
    return f" (did you mean {by_lower[near[0]]!r}?)" if near else ""


def shown(value: object) -> str:
    """A value as YAML has it, short."""
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _text(detail: ErrorDetails, schema: Mapping[str, Any]) -> str:
    kind, loc, given, context = detail["type"], detail["loc"], detail["input"], detail.get("ctx", {})
    match kind:
        case "extra_forbidden":
            right = _schema_at(loc[:-1], schema).get("properties", {})
            return f"unknown key{did_you_mean(loc[-1], right) or '; known: ' + ', '.join(right)}"
        case "missing":
            return "is missing"
        case "union_tag_not_found":
            return f"is missing: {' or '.join(_tags(loc, schema))}"
        case "union_tag_invalid":
            tags, tag = _tags(loc, schema), context["tag"]
            return f"must be {' or '.join(tags)}, not {tag!r}{did_you_mean(tag, tags)}"
        case "literal_error":
            choices = [str(choice) for choice in _choices(_schema_at(loc, schema))]
            return f"must be {' or '.join(choices)}, not {shown(given)}{did_you_mean(given, choices)}"
        case "too_short":
            return "is empty"
        case "string_pattern_mismatch":
            return f"must be letters, digits, '.', '_' and '-', beginning with a letter or digit, not {shown(given)}"
    if kind in _EXPECTED:
        return f"{_EXPECTED[kind]}, not {shown(given)}"
    if kind in _BOUNDS:
        words, bound = _BOUNDS[kind]
        return f"must be {words} {context[bound]:g}, not {shown(given)}"
    return f"{detail['msg']}: {shown(given)}"


def _choices(schema: Mapping[str, Any]) -> Sequence[object]:
    return schema["enum"] if "enum" in schema else [schema["const"]]


def _path(detail: ErrorDetails, schema: Mapping[str, Any]) -> KeyPath:
    """The keys of the file that lead to the fault, without what pydantic adds: union tags, the mark of a key."""
    loc = detail["loc"]
    keys = tuple(step for at, step in enumerate(loc) if step != "[key]" and not _is_tag(loc[:at], step, schema))
    if detail["type"] in ("union_tag_not_found", "union_tag_invalid"):
        return (*keys, _schema_at(loc, schema)["discriminator"]["propertyName"])
    return keys


def _is_tag(before: Sequence[str | int], step: str | int, schema: Mapping[str, Any]) -> bool:
    return step in _tags(before, schema)


def _tags(loc: Sequence[str | int], schema: Mapping[str, Any]) -> Sequence[str]:
    """What the key that tells the variants of a section apart may say; nothing where there are no variants."""
    return list(_schema_at(loc, schema).get("discriminator", {}).get("mapping", {}))


def _schema_at(loc: Sequence[str | int], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of the value at `loc`, empty where the schema says nothing of it."""
    here: Mapping[str, Any] = schema
    for step in loc:
        if "discriminator" in here:
            here = {"$ref": here["discriminator"]["mapping"].get(step, "#")}
        elif isinstance(step, int):
            here = here.get("items", {})
        else:
            here = here.get("properties", {}).get(step) or _value_schema(here)
        if "$ref" in here:
            here = schema["$defs"].get(here["$ref"].rsplit("/", 1)[-1], {})
    return here


def _value_schema(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of any value of a mapping with free keys."""
    patterns = schema.get("patternProperties", {})
    free = next(iter(patterns.values()), schema.get("additionalProperties"))
    return free if isinstance(free, Mapping) else {}
