"""A folder or a bucket as a set of objects that are created once and never changed.

On a bucket a create is one conditional PUT (If-None-Match); in a folder the bytes are staged beside their name and
linked to it, then they and the folders above are fsynced: whoever sees a name sees the whole object, and what was
acknowledged survives a power cut. Every fault comes out as StoreError. What opens a bucket comes from the environment
of the process alone, and no message holds it.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from orchestrator.errors import NoStore, StoreError

if TYPE_CHECKING:
    from obstore import ObjectMeta  # exists in the stubs only

REQUESTS_AT_ONCE = 32  # small requests to a bucket wait on its latency, some 10 to 50 ms, and on nothing of ours

OPENING_ADVICE = (
    "check the path or URL, and for a bucket its name, region and credentials, which every node takes from its own "
    "environment"
)

# Environment variables that open a bucket, by any of the names that obstore reads.
_SECRET = re.compile(r"(AWS|AZURE|GOOGLE|GCP)_.*(KEY|SECRET|TOKEN|PASSWORD|SAS)", re.IGNORECASE)
_QUERY = re.compile(r"\?[^\s'\"]*=[^\s'\"]*")  # of a signed URL
_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://")
_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Listed:
    """One object as a listing shows it. Two objects that compare equal hold the same bytes."""

    path: str
    size_bytes: int
    modified_unix_s: float


@dataclass(frozen=True, slots=True)
class Objects:
    """The objects below `uri`, by path relative to it. `root` is the folder they lie in, None on a bucket."""

    uri: str
    backend: ObjectStore
    root: Path | None
    _durable_folders: set[Path] = field(default_factory=set, repr=False)

    @classmethod
    def connect(cls, uri: str, create: bool) -> Objects:
        """Raises StoreError: no such folder (`create=False`), a file in its place, or a URL that cannot be used."""
        _refuse_credentials(uri)
        with _explained(f"cannot open {uri!r}", OPENING_ADVICE):
            root = local_folder(uri)
            if root is None:
                return cls(uri, from_url(uri), None)
            if not create and not root.is_dir():
                raise NoStore(f"no store at {uri!r}: there is no such folder; check the path, or run a sweep into it")
            return cls(uri, LocalStore(root, mkdir=create), root.resolve())

    def prove_writable(self) -> None:
        """Create one small object and delete it again. Raises StoreError where that does not work."""
        probe = f".probe-{uuid4().hex}"
        with _explained(f"cannot write to the store {self.uri!r}", f"{OPENING_ADVICE}, and free space and permissions"):
            self.backend.put(probe, b"", mode="create")
            self.backend.delete(probe)

    def create(self, path: str, data: bytes) -> bool:
        """Make `path` hold `data`, durably; False where it holds something else already.

        That it holds the very same bytes is success: a PUT whose answer was lost is sent again, and then finds itself.
        """
        with self._explained("write to"):
            try:
                self.backend.put(path, data, mode="create")
            except AlreadyExistsError:
                if self.get(path) != data:
                    return False
            if self.root is not None:
                self._make_durable(self.root / path)
        return True

    def get(self, path: str) -> bytes:
        with self._explained(f"read {path!r} of"):
            return bytes(self.backend.get(path).bytes())

    def stat(self, path: str) -> Listed | None:
        """None where there is no such object."""
        with self._explained(f"look at {path!r} of"):
            try:
                return _listed(self.backend.head(path))
            except FileNotFoundError:
                return None

    def listing(self, folder: str) -> list[Listed]:
        """Every object below `folder`, sorted by path; none where there is no such folder."""
        with self._explained("list"):
            found = self.backend.list(folder).collect()
        return sorted((_listed(meta) for meta in found), key=lambda entry: entry.path)

    def folders(self, folder: str) -> list[str]:
        """Paths of the folders directly below `folder`."""
        with self._explained("list"):
            return sorted(self.backend.list_with_delimiter(folder)["common_prefixes"])

    def each(self, do: Callable[[_Item], _Answer], items: Iterable[_Item]) -> list[_Answer]:
        """`do` on every item, in order; many at once on a bucket. A folder answers faster than a thread starts."""
        if self.root is not None:
            return [do(item) for item in items]
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            return list(pool.map(do, items))

    def _make_durable(self, file: Path) -> None:
        """fsync the file, the folder that names it and, once each, the folders above up to the root's parent."""
        assert self.root is not None
        _fsync(file)
        _fsync(file.parent)
        for folder in file.parent.parents:
            if folder in self._durable_folders or not folder.is_relative_to(self.root.parent):
                break
            if os.access(folder, os.R_OK):  # the root's parent may be closed to us
                _fsync(folder)
            self._durable_folders.add(folder)

    def _explained(self, what: str) -> AbstractContextManager[None]:
        return _explained(
            f"cannot {what} the store {self.uri!r}",
            "check free space, permissions and network; what is committed stays",
        )


def _listed(meta: ObjectMeta) -> Listed:
    return Listed(meta["path"], meta["size"], meta["last_modified"].timestamp())


def local_folder(uri: str) -> Path | None:
    """The folder that a plain path or a file:// URL means, absolute; None for any other URL."""
    scheme = _SCHEME.match(uri)
    if scheme is None:
        return Path(uri).absolute()
    if scheme["scheme"].lower() != "file":
        return None
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise StoreError(f"{uri!r} names no folder: write file:///absolute/path or just the path")
    return Path(unquote(parts.path))


def _refuse_credentials(uri: str) -> None:
    """A URL is printed, stored and handed around, so it must not be what opens the bucket. Raises StoreError."""
    scheme = _SCHEME.match(uri)
    if scheme is None or scheme["scheme"].lower() == "file":
        return
    parts = urlsplit(uri)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise StoreError(
            f"the store's URL ({scheme['scheme']}://...) holds a user, a query or a fragment: name the bucket and the "
            "folder alone, and give credentials in the environment (AWS_*, GOOGLE_*, AZURE_*)"
        )


def _without_secrets(text: str) -> str:
    """What servers and libraries say may quote the key that was used or a signed URL."""
    for name, value in os.environ.items():
        if len(value) >= 4 and _SECRET.match(name):
            text = text.replace(value, f"<{name}>")
    return _QUERY.sub("?...", text)


def default_store(under_ray_job: bool) -> str:
    """Where results go if nobody says: beside the caller, or in the home of a job, whose working directory vanishes."""
    return str(Path.home() / "mpscape-results") if under_ray_job else "results"


def absolute_store(uri: str, under_ray_job: bool) -> str:
    """`uri` in a form that means the same to every process.

    Raises:
        StoreError: a relative path under a Ray job, whose working directory is deleted with the job.
    """
    if uri == "":
        raise StoreError("the store's name is empty: give --store a folder or a URL")
    if _SCHEME.match(uri) or Path(uri).is_absolute():
        return uri
    if under_ray_job:
        raise StoreError(
            f"the store {uri!r} is relative to the job's working directory, which Ray deletes with the job: "
            "give --store an absolute path on storage that all nodes share, or a bucket (s3://, gs://, az://)"
        )
    return str(Path(uri).absolute())


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network and FUSE file systems have no fsync of a folder; they order names themselves.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(handle)


@contextmanager
def _explained(what: str, advice: str) -> Iterator[None]:
    try:
        yield
    except (BaseError, OSError, ValueError) as error:
        told = _without_secrets(str(error))
        # What a traceback would print in full stays unchained where it holds what must not be printed.
        cause = error if told == str(error) else None
        raise StoreError(f"{what}: {told.splitlines()[0]}; {advice}") from cause
