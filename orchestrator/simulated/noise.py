"""How simulated measurements scatter: by boot, over time, by window and from step to step, all from hashed seeds.

The scatter is on speed, host and GPU alike, so it never favours an arm. Its size is an assumption (constants.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.simulated.constants import value
from orchestrator.trial import fingerprint

JITTER_STEPS = 509  # prime, so that the cycle does not lock to the period of the load


def generator(*identity: Any) -> np.random.Generator:
    """A random generator that is the same wherever and whenever the identity is."""
    return np.random.default_rng(int(fingerprint(list(identity)), 16))


@dataclass(frozen=True, slots=True)
class Noise:
    """The scatter of one boot of one arm. Speeds are factors around 1."""

    boot_speed: float
    drift_phase: float
    realistic: bool

    @classmethod
    def of_boot(cls, boot_seed: str, gpu_seed: str, realistic: bool, slow_boot_probability: float) -> Noise:
        """boot_seed names the boot, gpu_seed what all arms of a deployment share; both are drawn from by hash."""
        rng = generator("boot", boot_seed)
        slow = rng.random() < slow_boot_probability
        scatter = float(rng.normal(0.0, value("boot_noise"))) if realistic else 0.0
        speed = math.exp(scatter) * (value("slow_boot") if slow else 1.0)
        return cls(speed, float(generator("drift", gpu_seed).uniform(0, 2 * math.pi)), realistic)

    def window_speed(self, now_s: float, rng: np.random.Generator) -> float:
        """Speed of a window that starts at virtual time `now_s`; rng: of this window alone."""
        if not self.realistic:
            return self.boot_speed
        drift = value("drift_noise") * math.sin(2 * math.pi * now_s / value("drift_period") + self.drift_phase)
        return self.boot_speed * math.exp(drift + float(rng.normal(0.0, value("window_noise"))))

    def step_jitter(self, rng: np.random.Generator) -> tuple[float, ...]:
        """Factors of the host time of successive steps, of mean 1."""
        if not self.realistic:
            return (1.0,)
        sd = value("step_jitter")
        return tuple(np.exp(rng.normal(-sd * sd / 2, sd, JITTER_STEPS)).tolist())
