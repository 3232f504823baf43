"""An S3-compatible server of a test's own, on this machine: a bucket in the memory of another process.

Requests are answered one at a time, because moto looks for an object and then makes it in two steps: with threads, two
conditional PUTs of one name could both succeed, which S3 itself does not allow.
"""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

SERVER = """
import sys
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=False)
print(server.port, flush=True)
server.serve_forever()
"""
ACCESS_KEY = "AKIAMPSCAPETESTACCESS"
SECRET_KEY = "s3cr3t-of-the-bucket-that-nobody-may-see"
SESSION_TOKEN = "t0ken-of-the-sess1on-that-nobody-may-see"
SECRETS = (ACCESS_KEY, SECRET_KEY, SESSION_TOKEN)


@dataclass(frozen=True)
class S3:
    """A running server. `log` is where it writes one line a request."""

    endpoint: str
    bucket: str
    log: Path
    environment: dict[str, str] = field(repr=False)

    def uri(self, prefix: str) -> str:
        return f"s3://{self.bucket}/{prefix}"


@contextmanager
def s3_server(folder: Path) -> Iterator[S3]:
    """One bucket, and the environment that opens it; gone with the block."""
    log = folder / "s3.log"
    # Moto reads credentials too; whatever this machine's user has is none of its business.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=sink,
        )
    try:
        assert process.stdout is not None
        port = process.stdout.readline().decode().strip()
        assert port.isdigit(), log.read_text()
        endpoint = f"http://127.0.0.1:{port}"
        with urllib.request.urlopen(urllib.request.Request(f"{endpoint}/results", method="PUT"), timeout=30) as answer:
            assert answer.status == 200
        keys = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_SESSION_TOKEN": SESSION_TOKEN,
        }
        yield S3(endpoint, "results", log, keys)
    finally:
        process.kill()
        process.communicate()
