"""A worker extension for tests: holds what a replay computes against what the step itself computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from orchestrator.engine_probe import StepProbe
from orchestrator.step_replay import Step


class ReplayedLogits(StepProbe):
    """The step probe; for each step that it stands at, a line with the largest difference of any logit.

    As long as a file `fail` lies beside the counters, no step can be captured.
    """

    def mpscape_attach(self, counters_path: str) -> dict[str, Any]:
        self.mpscape_seen = seen_file(Path(counters_path))
        return super().mpscape_attach(counters_path)

    def _mpscape_stand(self, step: Step) -> None:
        import torch

        if self.mpscape_seen.with_name("fail").exists():
            self.mpscape_watch.close()
            self.mpscape_outcome = {"error": "planted: no capture"}
            return
        with torch.inference_mode():
            apart = [float((step.run() - self.model_runner.execute_model_state.logits).abs().max()) for _ in range(3)]
        with self.mpscape_seen.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"apart": apart, "tokens": step.tokens, "sequences": step.sequences}) + "\n")
        super()._mpscape_stand(step)


def seen_file(counters: Path) -> Path:
    return counters.with_suffix(".replays")
