"""`engine_args["simulation"]`: what a sweep may ask of the simulated GPU.

simulation:
  noise: realistic              # or none
  planted_gain: {mps-2: 1.2}    # the arm's true gain over the baseline; sharing physics is off
  slow_boot_probability: 0.0    # share of boots that come up in a slower mode
  fail: {arm: mps-2, at_window: 3, error: MpsFault}      # optional: repeat, once
  wall_s_per_window: 0.0        # wall time that a window takes, for watching and interrupting a sweep
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from orchestrator.errors import BootError, EngineCrashed, MeasurementError, MpsFault, SpecError, WindowError

ERRORS: dict[str, type[MeasurementError]] = {
    error.__name__: error for error in (BootError, EngineCrashed, MpsFault, WindowError)
}


@dataclass(frozen=True, slots=True)
class Failure:
    """Fail `arm` at its window number `at_window` (pilots count, from 0; a BootError comes at the boot instead).

    repeat: only in this repeat; once: a file that is made when it has failed and keeps it from failing again.
    """

    arm: str
    error: str
    at_window: int = 0
    repeat: int | None = None
    once: str | None = None

    def strike(self, when: str) -> None:
        """Raise, unless it has struck before and was to do so once."""
        if self.once is not None:
            if Path(self.once).exists():
                return
            Path(self.once).touch()
        raise ERRORS[self.error](
            f"simulated {self.error} of arm {self.arm} {when}, as engine_args.simulation.fail asks",
            log_tail="(simulated: there is no log)",
        )


@dataclass(frozen=True, slots=True)
class SimulationOptions:
    """The options as read; see the module's text."""

    noise: str = "realistic"
    planted_gain: Mapping[str, float] = field(default_factory=dict)
    slow_boot_probability: float = 0.0
    fail: Failure | None = None
    wall_s_per_window: float = 0.0

    @property
    def realistic(self) -> bool:
        return self.noise == "realistic"

    @property
    def planted(self) -> bool:
        """Whether the truth is planted: every arm is then the same engine, faster by its factor (1 if not named)."""
        return bool(self.planted_gain)

    @classmethod
    def from_engine_args(cls, engine_args: Mapping[str, Any]) -> SimulationOptions:
        """Read `engine_args["simulation"]`; without it, realistic noise and nothing else.

        Raises SpecError where a key or value is not one of those above.
        """
        given = engine_args.get("simulation") or {}
        options = cls(**_known(given, cls, "simulation"))
        if options.noise not in ("none", "realistic"):
            raise SpecError(f"simulation.noise must be none or realistic, not {options.noise!r}")
        gains = options.planted_gain
        if gains is not None and (
            not isinstance(gains, Mapping) or not all(_positive(gain) for gain in gains.values())
        ):
            raise SpecError(f"simulation.planted_gain must map arms to factors above zero, not {gains!r}")
        if options.fail is None:
            return options
        failure = Failure(**_known(given["fail"], Failure, "simulation.fail", required=("arm", "error")))
        if failure.error not in ERRORS:
            raise SpecError(f"simulation.fail.error must be one of {', '.join(ERRORS)}, not {failure.error!r}")
        return cls(**{**{f.name: getattr(options, f.name) for f in fields(cls)}, "fail": failure})


def _known(given: Any, into: type, where: str, required: tuple[str, ...] = ()) -> dict[str, Any]:
    names = [each.name for each in fields(into)]
    if not isinstance(given, Mapping):
        raise SpecError(f"{where} must be a mapping, not {given!r}")
    unknown = sorted(set(given) - set(names))
    missing = sorted(set(required) - set(given))
    if unknown or missing:
        wrong = f"unknown key {unknown[0]!r}" if unknown else f"key {missing[0]!r} is missing"
        raise SpecError(f"{where}: {wrong}; the keys are {', '.join(names)}")
    return dict(given)


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
