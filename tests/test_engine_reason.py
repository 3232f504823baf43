"""What a failed boot is said to have died of, from the log's tail."""

from __future__ import annotations

import pytest

from orchestrator.engine import boot_phases, boot_reason

CORE = """\
(EngineCore pid=7) ERROR 01-01 00:00:00 [core.py:900] EngineCore failed to start.
(EngineCore pid=7) ERROR 01-01 00:00:00 [core.py:900] Traceback (most recent call last):
(EngineCore pid=7) ERROR 01-01 00:00:00 [core.py:900]     raise ValueError(
(EngineCore pid=7) ERROR 01-01 00:00:00 [core.py:900] ValueError: To serve one request, 1 GiB KV cache is needed
Traceback (most recent call last):
  File "core_client.py", line 1, in wait_for_engine_startup
    raise RuntimeError(
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        (CORE, "ValueError: To serve one request, 1 GiB KV cache is needed"),
        (
            CORE.replace("ValueError: To", "ModuleNotFoundError: To"),
            "ModuleNotFoundError: To serve one request, 1 GiB KV cache is needed",
        ),
        (
            CORE.replace("ValueError: To serve", "triton.compiler.errors.CompilationError: at"),
            "triton.compiler.errors.CompilationError: at one request, 1 GiB KV cache is needed",
        ),
        (
            "(EngineCore pid=7) INFO 01-01 [x.py:1] retries=3 on RuntimeError-like states\n",
            "RuntimeError: what vLLM raised",
        ),
        (
            "pydantic_core.ValidationError: 1 validation error for ModelConfig\n  Value error\n",
            "RuntimeError: what vLLM raised",
        ),
        ("", "RuntimeError: what vLLM raised"),
        ("INFO all is well\n", "RuntimeError: what vLLM raised"),
        ("torch.OutOfMemoryError: CUDA out of memory.\n", "torch.OutOfMemoryError: CUDA out of memory."),
    ],
)
def test_the_cause_is_named_and_not_its_consequence(tail: str, reason: str) -> None:
    assert boot_reason("RuntimeError: what vLLM raised", tail) == reason


def test_phases_of_a_boot_are_read_from_the_log() -> None:
    log = "Model loading took 2.9 GiB and 1.25 seconds\nGraph capturing finished in 4 secs, took 0.5 GiB\n"
    assert boot_phases(log) == {"weights_s": 1.25, "capture_s": 4.0}
