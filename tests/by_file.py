"""Which tests go to one worker: those of a file, and of files that share something that takes long to make."""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

# Files whose tests share a fixture of the session, which every worker that runs one of them would make anew.
SHARES = {
    "tests/test_kill.py": "head",
    "tests/test_sweep.py": "head",
    "tests/test_browser.py": "report",
    "tests/test_report.py": "report",
}


class ByFile(LoadScopeScheduling):
    """Gives a worker whole files, or all files that share something."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return SHARES.get(file, file)
