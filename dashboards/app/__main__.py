"""The interactive dashboard over one or more stores, while sweeps write them.

    python -m dashboards.app [STORE ...] [--host 127.0.0.1] [--port 8050] [--theme auto|light|dark]

Without STORE it shows the measured record that comes with the project. A second store can be compared with the first.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from dashboards.app.site import Site, following
from orchestrator.errors import EXIT_OK, MpscapeError
from orchestrator.store import ResultStore

RECORD = Path(__file__).parent.parent.parent / "reference" / "h200"
PORT = 8050


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: serves until it is interrupted."""
    asked = _parse(arguments)
    try:
        from werkzeug.serving import make_server

        from dashboards.app.server import application
    except ModuleNotFoundError as error:
        if error.name not in ("dash", "flask", "werkzeug"):
            raise
        print("the dashboard needs Dash: pip install 'mpscape[dash]'", file=sys.stderr)
        return 2
    try:
        site = Site([ResultStore.open(uri, create=False) for uri in asked.store or [str(RECORD)]], not asked.no_cache)
        site.refresh()
    except MpscapeError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    for trouble in site.snapshot.trouble:
        print(trouble, file=sys.stderr)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    try:
        server = make_server(asked.host, asked.port, application(site, asked.every, asked.theme).server, threaded=True)
    except OSError as error:
        print(f"cannot serve on {asked.host}:{asked.port}: {error}; give another --port", file=sys.stderr)
        return 2
    with following(site, asked.every):
        print(f"http://{asked.host}:{server.server_port}  (Ctrl-C ends it)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
    return EXIT_OK


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m dashboards.app", description=__doc__.splitlines()[0])
    parser.add_argument("store", nargs="*", metavar="STORE", help="folder or URL (default: the measured record)")
    parser.add_argument("--host", default="127.0.0.1", help="default: this machine only")
    parser.add_argument("--port", type=int, default=PORT, help=f"default: {PORT}; 0: any free one")
    parser.add_argument("--theme", choices=("auto", "light", "dark"), default="auto", help="first colour scheme")
    parser.add_argument("--every", type=float, default=5.0, metavar="S", help="seconds between looks at the store")
    parser.add_argument("--no-cache", action="store_true", help="keep no summary of the stores under ~/.cache")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
