"""Every error this project raises on purpose, under one root.

    MpscapeError
    ├── SpecError             the sweep file is wrong               exit 2
    ├── StoreError            the store cannot be used              exit 2
    │   ├── NoStore           there is none at that place         exit 2
    │   └── SchemaTooNew      written by a newer release            exit 2
    ├── ModelError            unknown model or unusable config      exit 2
    ├── ClusterError          no cluster, or no such GPU in it      exit 3
    └── MeasurementError      a block or a trial could not be measured: becomes a failed row
        ├── BootError         an engine did not come up
        ├── EngineCrashed     an engine died or stopped answering
        ├── MpsError          the control daemon or its server failed
        │   └── MpsFault      the server is in FAULT: every client of the GPU is lost
        ├── WindowError       a window could not be measured (clients starved, counters unreadable)
        └── GpuNotClean       foreign processes or memory before or after the work

Messages say what happened, where the log is, and what to do next.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_TRIAL_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_NO_CLUSTER = 3
EXIT_INTERRUPTED = 130


class MpscapeError(Exception):
    """Root of the tree. `exit_status` is what a command line ends with."""

    exit_status = EXIT_TRIAL_FAILED


class SpecError(MpscapeError):
    """The sweep file is wrong; the message lists every fault, one a line, as `file:line: key: what`."""

    exit_status = EXIT_BAD_INPUT


class StoreError(MpscapeError):
    """The store cannot be read or written."""

    exit_status = EXIT_BAD_INPUT


class NoStore(StoreError):
    """There is no store at that place, and none was to be made."""


class SchemaTooNew(StoreError):
    """The store was written by a newer release than this one."""


class ModelError(MpscapeError):
    """No such model, or its config lacks what the arithmetic needs."""

    exit_status = EXIT_BAD_INPUT


class ClusterError(MpscapeError):
    """No Ray cluster, or it can never meet the demand."""

    exit_status = EXIT_NO_CLUSTER


class MeasurementError(MpscapeError):
    """A block or trial could not be measured. `log_tail` holds the last lines of the log that explains it."""

    def __init__(self, message: str, log_tail: str = "") -> None:
        super().__init__(message)
        self.log_tail = log_tail

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.log_tail)


class BootError(MeasurementError):
    """An engine did not come up: out of memory, bad argument, time-out."""


class EngineCrashed(MeasurementError):
    """An engine died or stopped answering while it was in use."""


class MpsError(MeasurementError):
    """The MPS control daemon or its server failed, or a client is not where it should be."""


class MpsFault(MpsError):
    """The MPS server is in FAULT, which ends every client on the GPU."""


class WindowError(MeasurementError):
    """A window could not be measured, though its engines still live."""


class GpuNotClean(MeasurementError):
    """The GPU holds processes or memory that are not ours."""
