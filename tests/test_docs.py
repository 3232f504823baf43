"""What the documentation says is so: links, commands, sweep files, the file map; no word about where it was written."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from orchestrator.expand import expand
from orchestrator.spec import load_spec, parse_spec

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")

# Words of the place where a change was made, not of the project. Pieces, so that this file does not hold them itself.
WORKPLACE = {
    "an absolute path of a workplace": r"/wor" + r"k/",
    "a page outside the repository": r"\bshar" + r"ed/(DESIGN|reference|gpu-host|hooks)",
    "the host of a package index": r"pypi\.(org|io)|pythonho" + r"sted\.org",
    "a number of an issue of ours": r"(?<![\w/#-])issue" + r"s? #?\d",
    "talk of working sessions": r"\b(this|last|next|previous|earlier|later|another|our) sess" + r"ions?\b",
    "talk of helpers": r"\b(a|the|another|other) help" + r"ers?\b(?! (function|thread|process|module))",
}


@cache
def files() -> tuple[Path, ...]:
    """Every file that is tracked or about to be."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True, text=True,
    ).stdout  # fmt: skip
    return tuple(path for name in listed.split("\0") if name and (path := ROOT / name).is_file())


def pages() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in files() if path.suffix == ".md")


def fences(text: str, language: str) -> list[str]:
    return [body for name, body in FENCE.findall(text) if name == language]


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", pages())
def test_links_resolve(page: str) -> None:
    text = FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    broken = []
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (ROOT / page).parent / path if path else ROOT / page
        if not there.exists():
            broken.append(f"{target}: no such file")
        elif anchor and anchor not in {
            slug(line) for line in re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.MULTILINE)
        }:
            broken.append(f"{target}: no such heading")
    assert not broken


def commands() -> list[str]:
    lines = []
    for page in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        for body in (*fences(text, "bash"), *fences(text, "console")):
            lines += [line.removeprefix("$ ") for line in body.replace("\\\n", " ").splitlines() if line.strip()]
    return lines


def test_the_readme_has_commands() -> None:
    assert any(line.startswith("make quickstart") for line in commands())
    assert any(line.startswith("ray job submit") for line in commands())


@pytest.mark.parametrize("line", commands())
def test_commands_parse(line: str) -> None:
    words = shlex.split(line, comments=True)
    if words[:3] == ["ray", "job", "submit"]:
        words = words[words.index("--") + 1 :]
    if words[0] == "make":
        targets = [word for word in words[1:] if "=" not in word]
        assert targets
        assert set(targets) <= set(make_targets())
        variables = {word.partition("=")[0] for word in words[1:] if "=" in word}
        assert variables <= set(
            re.findall(r"^(\w+) \?=", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        )
    elif words[:2] == ["python", "-m"]:
        shown = help_of(words[2])
        for word in words[3:]:
            if word.startswith("--"):
                assert word in shown
            elif word.endswith(".yaml"):
                assert (ROOT / word).is_file()
    else:
        assert (ROOT / words[0]).is_file(), f"neither make nor python -m nor ray nor a script of ours: {line}"


@cache
def help_of(module: str) -> str:
    assert importlib.util.find_spec(module), f"no module {module}"
    shown = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


@cache
def make_targets() -> tuple[str, ...]:
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert phony is not None
    return tuple(phony[1].split())


def test_make_help_names_every_target() -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.split()[0] for line in shown.splitlines()} == set(make_targets())


def test_inline_commands_name_modules_that_exist() -> None:
    named = {
        module
        for page in pages()
        for module in re.findall(r"python -m ([a-z_.]+[a-z_])", (ROOT / page).read_text(encoding="utf-8"))
    }
    assert {"orchestrator.sweep", "orchestrator.doctor"} <= named
    assert [module for module in sorted(named) if importlib.util.find_spec(module) is None] == []


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "sweeps").iterdir() if path.is_file()))
def test_sweep_files(name: str) -> None:
    path = ROOT / "sweeps" / name
    if path.name.endswith(".schema.json"):
        assert json.loads(path.read_text(encoding="utf-8"))["$schema"].startswith("https://json-schema.org/")
        return
    assert path.suffix == ".yaml", "sweeps/ holds sweep files and their JSON Schema only"
    spec = load_spec(path)
    backend = "vllm" if spec.backend == "auto" else spec.backend
    assert expand(spec, backend, "H200" if spec.gpu == "any" else spec.gpu)
    assert spec.name == path.stem
    opening = re.match(r"(#.*\n)+", path.read_text(encoding="utf-8"))
    assert opening and "?" in opening[0] and "Cost: " in opening[0], "it opens with its question and its cost"
    assert ("simulated" in opening[0].lower()) == (spec.backend == "simulated")


@pytest.mark.parametrize("page", pages())
def test_sweep_files_in_pages(page: str) -> None:
    for body in fences((ROOT / page).read_text(encoding="utf-8"), "yaml"):
        if "schema_version" in body:
            spec = parse_spec(body, page)
            assert expand(spec, "vllm", "H200")


def test_code_in_the_readme_is_the_code() -> None:
    """Lines may be left out of a quotation, but not changed or moved."""
    source = iter((ROOT / "orchestrator" / "sweep.py").read_text(encoding="utf-8").splitlines())
    quoted = [line for body in fences(README.read_text(encoding="utf-8"), "python") for line in body.splitlines()]
    assert len(quoted) > 5
    assert [line for line in quoted if line not in source] == [], "not in orchestrator/sweep.py, or not in this order"


def test_a_picture_of_predictions_says_so() -> None:
    text = README.read_text(encoding="utf-8")
    for name in re.findall(r"!\[[^\]]*\]\(([^)\s]+\.svg)\)", text):
        if "SIMULATED" in (ROOT / name).read_text(encoding="utf-8"):
            after = text.partition(f"({name})")[2].lstrip()
            assert after.startswith("*SIMULATED: ")


def test_the_file_map_names_what_is_there() -> None:
    section = README.read_text(encoding="utf-8").partition("## Files\n")[2].partition("\n## ")[0]
    paths = re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []
    packages = {path.relative_to(ROOT).parts[0] for path in files() if path.name == "__init__.py"}
    assert packages <= {path.split("/")[0] for path in paths}


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    linked = set(LINK.findall(index.read_text(encoding="utf-8")))
    there = {path.name for path in files() if path.parent == index.parent and path.suffix == ".md"}
    assert there - {index.name} <= linked


@pytest.mark.parametrize("what", WORKPLACE)
def test_the_project_speaks_of_itself_alone(what: str) -> None:
    pattern = re.compile(WORKPLACE[what], re.IGNORECASE)
    found = []
    for path in files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # Parquet, pictures
            continue
        found += [
            f"{path.relative_to(ROOT)}:{n}: {line}"
            for n, line in enumerate(text.splitlines(), 1)
            if pattern.search(line)
        ]
    assert not found
