"""The logs of one MPS daemon: read on from where they were read to, cut when they grow, quoted in errors."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.process import tail

# A daemon logs some 220 bytes a command, which at one look every 3 s is 13 MB a day.
LOG_LIMIT_BYTES = 4 * 2**20

# server.log names a fault with the client that caused it (NVIDIA MPS documentation, logging); commands are echoed too.
FAULT_LINE = re.compile(r"^(?!.*Cmd:).*(?:fatal (?:GPU )?(?:error|fault|exception)|\bFAULT\b)", re.IGNORECASE)
SERVER_ENDED = re.compile(r"Server (\d+) exited with status (\d+)")


@dataclass(slots=True)
class MpsLogs:
    """Every *.log in `folder`: ours with the daemon's output, control.log and server.log as the driver writes them."""

    folder: Path
    _read: dict[Path, int] = field(default_factory=dict)

    @property
    def output(self) -> Path:
        """Where the daemon's standard output and error belong."""
        return self.folder / "daemon.log"

    def new_lines(self) -> list[str]:
        """Whole lines that came since the last call, file by file; files beyond LOG_LIMIT_BYTES are then emptied."""
        lines = []
        for log in self._files():
            with log.open("rb") as file:
                start = self._read.get(log, 0)
                file.seek(start if start <= os.fstat(file.fileno()).st_size else 0)
                start = file.tell()
                text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            self._read[log] = start + len(whole)
            lines += whole.decode(errors="replace").splitlines()
            # By blocks, not by length: a writer without O_APPEND leaves a hole before its next line.
            if log.stat().st_blocks * 512 > LOG_LIMIT_BYTES:
                os.truncate(log, 0)
                self._read[log] = 0
        return lines

    def tail(self) -> str:
        """The last lines of each."""
        return "\n".join(f"--- {log.name}\n{tail(log, 40)}" for log in self._files())

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.log"))
