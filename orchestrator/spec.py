"""A sweep file as a strict value: every fault named at once, with its line and the nearest right key.

    spec = load_spec(default_spec_path())
    repeats = expand(spec, backend="simulated")      # orchestrator.expand

`docs/spec.md` is the reference of the keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, TypeAdapter, ValidationError, ValidationInfo, field_validator

from orchestrator.errors import SpecError
from orchestrator.spec_conflicts import Sound, conflicts
from orchestrator.spec_faults import shown, structural_faults
from orchestrator.spec_sections import (
    AnyArm,
    EngineArgs,
    Label,
    Maybe,
    MeasurementSection,
    Repeats,
    Section,
    SimulationSection,
    SweepSection,
    Weights,
    WorkloadSection,
)
from orchestrator.yaml_lines import Fault, KeyPath, YamlFile, read_yaml

# Beside the packages in a working directory and in an installation alike.
SWEEPS = Path(__file__).resolve().parent.parent / "sweeps"

# vLLM's `load_format` for each origin of the weights; `variance_scaled` is this project's own loader.
LOAD_FORMATS: Mapping[str, str] = {"dummy": "dummy", "random": "variance_scaled", "checkpoint": "auto"}


REPEATS: TypeAdapter[int] = TypeAdapter(Repeats)


class SweepSpec(Section):
    """A sweep: which arms are compared in which cells, how often, and on what."""

    schema_version: Literal[1]
    """Of this file format."""
    name: Label
    """Under which the store keeps the results."""
    question: Annotated[str, Field(min_length=1)]
    """What the sweep answers, in words."""
    backend: Literal["auto", "vllm", "vllm-cpu", "simulated"] = "auto"
    """auto: vllm where the cluster has a GPU, else simulated."""
    gpu: Literal["A100", "H100", "H200", "any"]
    """The GPU kind; any: whatever the cluster has."""
    weights: Weights = "dummy"
    """dummy: vLLM's near-zero values; random: of the size that trained weights have; checkpoint: the published ones."""
    engine_args: EngineArgs = Field(default_factory=dict)
    """vLLM engine arguments of every arm, passed on as they are."""
    arms: Annotated[dict[Label, AnyArm], Field(min_length=1)]
    """Ways to use one GPU, by name."""
    baseline: Maybe[Label] = None
    """The arm that the others are compared with; the first one if it is left out."""
    workload: WorkloadSection = Field(default_factory=WorkloadSection)
    sweep: SweepSection
    repeats: Repeats = 3
    """Sets of boots in which every cell is measured; a verdict needs three."""
    stopping: Literal["open", "fixed"] = "open"
    """open: boots may be added after a look, and intervals pay for every look; fixed: repeats is all there will be, and
    once a cell has just that many its interval pays for one."""
    residency_check: Annotated[tuple[Label, ...], Field(strict=False)] = ()
    """Arms of which one, in turn over the repeats, is measured alone at the end of each set of boots."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the order in which arms take turns."""
    measurement: MeasurementSection = Field(default_factory=MeasurementSection)
    simulation: Maybe[SimulationSection] = None

    _text: str = PrivateAttr("")
    _source: str = PrivateAttr("")

    @field_validator("*", mode="after")
    @classmethod
    def _note_sound(cls, value: object, info: ValidationInfo) -> object:
        """Tell the loader which sections are sound though others are not."""
        if info.context is not None:
            info.context[info.field_name] = value
        return value

    def of_repeats(self, repeats: int | None) -> SweepSpec:
        """The sweep with another number of repeats, the same for all cells; None leaves it. What is measured already
        keeps its identity.

        Raises SpecError where the number is not one that a file may hold.
        """
        if repeats is None:
            return self
        try:
            REPEATS.validate_python(repeats)
        except ValidationError as error:
            raise SpecError(f"--repeats: {error.errors()[0]['msg'].lower()}, not {repeats}") from error
        cells = tuple(cell.model_copy(update={"repeats": None}) for cell in self.sweep.include)
        sweep = self.sweep.model_copy(update={"include": cells})
        return self.model_copy(update={"repeats": repeats, "sweep": sweep})

    def on(self, gpu: str | None) -> SweepSpec:
        """The sweep for another GPU kind; None leaves it."""
        return self if gpu is None else self.model_copy(update={"gpu": gpu})

    @property
    def text(self) -> str:
        """The file as it was read."""
        return self._text

    @property
    def source(self) -> str:
        """The file's path as it was given."""
        return self._source

    @property
    def sha(self) -> str:
        """First 12 hex digits of the sha256 of `text`."""
        return hashlib.sha256(self._text.encode()).hexdigest()[:12]

    @property
    def baseline_arm(self) -> str:
        return self.baseline or next(iter(self.arms))


def default_spec_path(gpu: bool = False) -> Path:
    """The sweep that runs when none is named: the simulated quick start, or with `gpu` the short one for a real GPU."""
    return SWEEPS / ("smoke-gpu.yaml" if gpu else "quickstart.yaml")


def load_spec(path: str | Path) -> SweepSpec:
    """Read and check a sweep file. Raises SpecError that lists every fault, one a line, as `file:line: key: what`."""
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        line = 1 + error.object.count(b"\n", 0, error.start)
        raise SpecError(f"{path}:{line}: not UTF-8 text: byte 0x{error.object[error.start]:02x}") from error
    return parse_spec(text, str(path))


def parse_spec(text: str, source: str = "<spec>") -> SweepSpec:
    """As load_spec, of text; `source` stands for the file in messages."""
    file = read_yaml(text)
    if file.value is None and file.faults:
        raise _spec_error(source, file.faults)
    if not isinstance(file.value, dict):
        found = "empty" if file.value is None else shown(file.value)
        raise _spec_error(source, [Fault(file.line(()), (), f"must be a mapping of keys (docs/spec.md), not {found}")])
    sound: dict[str, Any] = {}
    faults = list(file.faults)
    known = {fault.path for fault in faults}
    spec: SweepSpec | None = None
    try:
        spec = SweepSpec.model_validate(file.value, context=sound)
    except ValidationError as error:
        faults += [fault for fault in structural_faults(error, SweepSpec, file) if fault.path not in known]
    faults += [Fault(file.line(at), at, what) for at, what in conflicts(_sound(sound, file))]
    if faults or spec is None:
        raise _spec_error(source, faults)
    spec._text, spec._source = text, source
    return spec


def _sound(found: Mapping[str, Any], file: YamlFile) -> Sound:
    """What pydantic noted as sound, and the defaults of what is not in the file."""
    arms = file.value.get("arms")
    sections: dict[str, Any] = {"arm_names": tuple(arms) if isinstance(arms, dict) else ()}
    for name in Sound.sections():
        field = SweepSpec.model_fields[name]
        absent = name not in file.value and not field.is_required()
        sections[name] = field.get_default(call_default_factory=True) if absent else found.get(name)
    return Sound(**sections)


def _spec_error(source: str, faults: Iterable[Fault]) -> SpecError:
    lines = []
    for fault in sorted(faults, key=lambda fault: fault.line):
        key = f" {key_text(fault.path)}:" if fault.path else ""
        lines.append(f"{source}:{fault.line}:{key} {fault.text}")
    return SpecError("\n".join(lines))


def key_text(path: KeyPath) -> str:
    """`a.b[2].c`"""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return "".join(steps).removeprefix(".")
