"""The sections of a sweep file as strict pydantic models: what each key may hold on its own.

Nothing is coerced, except that a whole number is fine where a fraction is asked for. What keys mean together is
checked in `spec_conflicts`. `docs/spec.md` is the reference for users.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import PydanticCustomError, core_schema

from orchestrator.errors import ModelError
from orchestrator.trial import Kind, Measurement, Mps, Single, TimeSliced
from workloads.catalogue import canonical_name, load_model

Axis = Literal["model", "kind", "prompt_tokens", "output_tokens", "concurrency"]
AXES: tuple[Axis, ...] = get_args(Axis)

# Engine arguments that the project sets itself, and where a sweep says what it wants of them instead.
OWNED_ENGINE_ARGS: Mapping[str, str] = {
    "model": "sweep.grid.model names the models",
    "load_format": "the top-level key weights says where weights come from",
    "seed": "the top-level key seed seeds everything",
    "simulation": "the top-level key simulation sets the simulated GPU",
    "gpu_memory_utilization": "engines that share a GPU are sized in bytes, so that KV never binds",
    "kv_cache_memory_bytes": "the plan sizes KV from the cells, so that it never binds",
    "num_gpu_blocks_override": "the plan sizes KV from the cells, so that it never binds",
    "enable_prefix_caching": "prompts are unique and prefix caching is off, or prefill would not be measured",
    "kv_transfer_config": "no KV comes from or goes to another engine: it would be work beside what is measured",
    "tensor_parallel_size": "one engine uses one GPU",
    "pipeline_parallel_size": "one engine uses one GPU",
    "data_parallel_size": "the number of engines is the arm's",
}

Value = TypeVar("Value")


def faults(*found: tuple[tuple[str | int, ...], str]) -> PydanticCustomError:
    """An error to raise from a validator: for each fault the path from the validated value down to it, and its text."""
    return PydanticCustomError("faults", "{text}", {"text": "; ".join(text for _, text in found), "found": found})


class _NoNull(GenerateJsonSchema):
    """A key that may be left out may not be null: None inside stands for a key that is not in the file."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        if "default" in schema and schema["default"] is None:
            return self.generate_inner(schema["schema"])
        return super().default_schema(schema)


class Section(BaseModel):
    """A mapping in the file: immutable, no unknown keys, no coercion."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON Schema of the section as it stands in a file."""
        return cls.model_json_schema(schema_generator=_NoNull)


def _written(value: object) -> object:
    if value is None:
        raise faults(((), "has no value: write one or leave the key out"))
    return value


def _known_model(name: str) -> str:
    try:
        load_model(name)
        return canonical_name(name)
    except ModelError as error:
        raise faults(((), str(error))) from error


def _not_owned(engine_args: dict[str, JsonValue]) -> dict[str, JsonValue]:
    owned = [
        ((name,), f"cannot be set: {OWNED_ENGINE_ARGS[name]}") for name in engine_args if name in OWNED_ENGINE_ARGS
    ]
    if owned:
        raise faults(*owned)
    return engine_args


def _distinct(values: tuple[Value, ...]) -> tuple[Value, ...]:
    again = [((at,), f"{value!r} stands twice in the list") for at, value in enumerate(values) if value in values[:at]]
    if again:
        raise faults(*again)
    return values


Weights = Literal["dummy", "random", "checkpoint"]
# A key that may be left out, but not left empty.
Maybe = Annotated[Value | None, BeforeValidator(_written)]
ModelName = Annotated[str, Field(min_length=1), AfterValidator(_known_model)]
Count = Annotated[int, Field(ge=1)]
Repeats = Annotated[int, Field(ge=1, le=1000)]
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
EngineArgs = Annotated[dict[str, JsonValue], AfterValidator(_not_owned)]
# YAML knows lists only; the entries stay strict.
Models = Annotated[tuple[ModelName, ...], Field(strict=False, min_length=1), AfterValidator(_distinct)]
Kinds = Annotated[tuple[Kind, ...], Field(strict=False, min_length=1), AfterValidator(_distinct)]
Counts = Annotated[tuple[Count, ...], Field(strict=False, min_length=1), AfterValidator(_distinct)]
ZippedModels = Annotated[tuple[ModelName, ...], Field(strict=False, min_length=1)]
ZippedKinds = Annotated[tuple[Kind, ...], Field(strict=False, min_length=1)]
ZippedCounts = Annotated[tuple[Count, ...], Field(strict=False, min_length=1)]


class ArmSection(Section):
    """What every arm may say."""

    engine_args: EngineArgs = Field(default_factory=dict)
    """vLLM engine arguments of this arm alone; they override the sweep's."""
    cores_per_engine: Count = 2
    """Physical cores of one engine: one for EngineCore, the others for its frontend and clients."""
    pinned: bool = True
    """Whether each engine keeps to its cores; otherwise it floats over the machine."""
    weights: Maybe[Weights] = None
    """Where this arm's weights come from, if not from where the sweep says."""


class SingleArm(ArmSection):
    """One engine has the GPU to itself."""

    sharing: Literal["single"]
    engines: Literal[1] = 1

    def mode(self) -> Single:
        return Single()


class TimeSlicedArm(ArmSection):
    """Engines share the GPU by the driver's time slices, without MPS."""

    sharing: Literal["timesliced"]
    engines: Annotated[int, Field(ge=2)]

    def mode(self) -> TimeSliced:
        return TimeSliced(self.engines)


class MpsArm(ArmSection):
    """Engines are clients of one MPS server; one engine is the control for what MPS itself costs."""

    sharing: Literal["mps"]
    engines: Count
    active_thread_percentage: Annotated[int, Field(ge=1, le=100)] = 100
    """Share of the SMs that each engine may use."""

    def mode(self) -> Mps:
        return Mps(self.engines, self.active_thread_percentage)


AnyArm = Annotated[SingleArm | TimeSlicedArm | MpsArm, Field(discriminator="sharing")]


class WorkloadSection(Section):
    """What all cells have in common: used wherever `sweep` does not say otherwise."""

    kind: Kind = "mixed"
    """mixed: prefill and decode as served; text: the same through a tokenizer; image: with an image in each prompt;
    prefill: one output token; decode: no prefill inside a window; -replay: one step of those, over and over, without
    the host."""
    prompt_tokens: Maybe[Count] = None
    """Input sequence length (ISL)."""
    output_tokens: Maybe[Count] = None
    """Output sequence length (OSL)."""
    concurrency: Maybe[Count] = None
    """Clients over all engines of an arm, one request in flight each."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the random prompts."""


class Grid(Section):
    """Every combination of these lists."""

    model: Maybe[Models] = None
    kind: Maybe[Kinds] = None
    prompt_tokens: Maybe[Counts] = None
    output_tokens: Maybe[Counts] = None
    concurrency: Maybe[Counts] = None


class Zip(Section):
    """Lists of equal length: the first entries belong together, the second ones, and so on."""

    model: Maybe[ZippedModels] = None
    kind: Maybe[ZippedKinds] = None
    prompt_tokens: Maybe[ZippedCounts] = None
    output_tokens: Maybe[ZippedCounts] = None
    concurrency: Maybe[ZippedCounts] = None

    @model_validator(mode="after")
    def _rows(self) -> Zip:
        columns = {axis: values for axis in AXES if (values := getattr(self, axis)) is not None}
        if len({len(values) for values in columns.values()}) > 1:
            shown = ", ".join(f"{axis} has {len(values)}" for axis, values in columns.items())
            raise faults(((), f"lists of unequal length: {shown}"))
        rows = list(zip(*columns.values(), strict=True))
        again = [((), f"row {at + 1} says what an earlier row says") for at, row in enumerate(rows) if row in rows[:at]]
        if again:
            raise faults(*again)
        return self


class Point(Section):
    """One cell (`include`), or what excluded cells have in common (`exclude`)."""

    model: Maybe[ModelName] = None
    kind: Maybe[Kind] = None
    prompt_tokens: Maybe[Count] = None
    output_tokens: Maybe[Count] = None
    concurrency: Maybe[Count] = None

    @model_validator(mode="after")
    def _not_empty(self) -> Point:
        if not self.given():
            raise faults(((), f"says nothing: give one of {', '.join(AXES)}"))
        return self

    def given(self) -> dict[Axis, str | int]:
        return {axis: value for axis in AXES if (value := getattr(self, axis)) is not None}


class Cell(Point):
    """One cell of `include`."""

    repeats: Maybe[Repeats] = None
    """Sets of boots for this cell; those of the sweep if it is left out."""


class SweepSection(Section):
    """The cells: grid times zip rows, plus include, minus exclude."""

    grid: Grid = Field(default_factory=Grid)
    zip: Zip = Field(default_factory=Zip)
    include: Annotated[tuple[Cell, ...], Field(strict=False)] = ()
    """Cells besides those of grid and zip; what an entry leaves out comes from `workload`."""
    exclude: Annotated[tuple[Point, ...], Field(strict=False)] = ()
    """Cells to leave out: all that have every value that the entry names."""


_DEFAULT = Measurement()


class MeasurementSection(Section):
    """How long and how often to look."""

    window_s: Annotated[float, Field(gt=0)] = _DEFAULT.window_s
    """Shortest window; it grows to four median request latencies where those are longer."""
    warmup_s: Annotated[float, Field(ge=0)] = _DEFAULT.warmup_s
    """Shortest warm-up before each window."""
    min_windows: Count = _DEFAULT.min_windows
    """Fewest windows of an arm in one repeat."""
    max_windows: Count = _DEFAULT.max_windows
    """Most windows of an arm in one repeat."""
    interval_target: Annotated[float, Field(gt=0, lt=1)] = _DEFAULT.interval_target
    """Windows are added until the half-width of the 95 % interval of every log ratio is below this."""
    tie_margin: Annotated[float, Field(ge=0, lt=1)] = _DEFAULT.tie_margin
    """A ratio within 1 ± this is a tie."""
    profile_steps: Annotated[int, Field(ge=0)] = _DEFAULT.profile_steps
    """For replayed kinds: runs of the step under a profiler, after each window of an arm of one engine."""

    @model_validator(mode="after")
    def _some_windows(self) -> MeasurementSection:
        if self.min_windows > self.max_windows:
            key = "min_windows" if "min_windows" in self.model_fields_set else "max_windows"
            raise faults(((key,), f"min_windows ({self.min_windows}) is above max_windows ({self.max_windows})"))
        return self

    def measurement(self) -> Measurement:
        return Measurement(**self.model_dump())


class FailSection(Section):
    """A failure to simulate."""

    arm: Label
    error: Literal["BootError", "EngineCrashed", "MpsFault", "WindowError"]
    at_window: Annotated[int, Field(ge=0)] = 0
    """Which window of the arm fails, pilots counted; a BootError comes at the boot."""
    repeat: Maybe[Annotated[int, Field(ge=0)]] = None
    """Only in the repeat of this number; in all if it is left out."""
    once: Maybe[Annotated[str, Field(min_length=1)]] = None
    """A file that is made at the failure and keeps it from coming again."""


class SimulationSection(Section):
    """Settings of the simulated GPU that tests of the method and of the way through need."""

    noise: Literal["realistic", "none"] = "realistic"
    planted_gain: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """True gains over the baseline by arm name; the physics of sharing are then off."""
    slow_boot_probability: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of boots that come up in a slower mode."""
    fail: Maybe[FailSection] = None
    wall_s_per_window: Annotated[float, Field(ge=0)] = 0.0
    """Wall time that a window takes, to watch or to interrupt a sweep."""
