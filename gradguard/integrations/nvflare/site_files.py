"""Files of a site that no job can remove: one process at a time, and noticed once they are lost.

They lie in ``.gradguard`` of the site's workspace. A job's own folder is no place for them: NVFlare
empties it when a job of that id is deployed again, and a job may be called as it likes.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.workspace import Workspace

FOLDER = ".gradguard"
"""No job's id begins with a dot."""


def workspace_of(fl_ctx: FLContext) -> Workspace:
    """Where the site keeps its files.

    Raises:
        ValueError: The context has none.
    """
    workspace = fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT)
    if workspace is None and fl_ctx.get_engine() is not None:
        workspace = fl_ctx.get_workspace()
    if workspace is None:
        raise ValueError("the context has no workspace, so that nothing can be remembered")
    return workspace


def kept_file(workspace: Workspace, *parts: str) -> Path:
    """The file of that name in the site's folder, where a link leads if it is one.

    Raises:
        ValueError: It is in a folder that a job can have.
    """
    root = Path(workspace.get_root_dir())
    path = root.joinpath(FOLDER, *parts).resolve()  # a file put over a link would be another's
    inside = path.relative_to(root.resolve()).parts if path.is_relative_to(root.resolve()) else ()
    if inside and _is_job(workspace, inside[0]):
        raise ValueError(
            f"{path}: a job called {inside[0]!r} would remove it; keep it in {root / FOLDER}"
        )
    return path


def _is_job(workspace: Workspace, name: str) -> bool:
    try:
        workspace.get_run_dir(name)
    except ValueError:
        return False
    return True


@dataclass
class Tally:
    """How much a file has held, kept beside it: one that holds less was lost, or is older."""

    count: int
    _file: int

    def raise_to(self, count: int) -> None:
        """Have the file hold at least so much from now on."""
        if count > self.count:
            # In place, since the lock is on this file: few bytes of one width, never cut short.
            os.pwrite(self._file, f"{count:020d}\n".encode(), 0)
            os.fsync(self._file)
            self.count = count


@contextmanager
def alone(path: Path) -> Iterator[Tally]:
    """Hold a lock that other threads and processes wait for; it ends with the process.

    Args:
        path: Of the lock, which holds the tally.

    Raises:
        ValueError: It holds something else.
    """
    import fcntl  # POSIX only; without it this raises, and nothing is sent

    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        text = os.pread(file, 100, 0)
        if not re.fullmatch(rb"(\d{20}\n)?", text):
            raise ValueError(f"{path}: damaged, so that it is not known what was sent; restore it")
        yield Tally(int(text or b"0"), file)
    finally:
        os.close(file)


def digest_of(*parts: bytes | memoryview) -> str:
    """By which damage is noticed; it keeps nobody from writing another file.

    >>> digest_of(b"1") == digest_of(b"2")
    False
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def write_whole(path: Path, content: bytes) -> None:
    """Have ``path`` hold all of ``content``, for its owner only, or what it held before."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # a ledger that a power cut takes back would understate
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
