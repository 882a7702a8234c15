"""Reading a stranger's file: its size is looked at first, and what may never end is not opened."""

from __future__ import annotations

import os
from pathlib import Path

from gradguard.evaluation.errors import UnusableInputError, one_line, printable


def read_bounded(path: Path, max_bytes: int, *, wanted: str) -> bytes:
    """All of a regular file of at most ``max_bytes``.

    Args:
        path: As the user wrote it; it is named in errors.
        max_bytes: From ``--max-bytes``, at least 1.
        wanted: What to give instead, in words.

    Raises:
        UnusableInputError: It is none, is empty, is larger, or cannot be read.
    """
    if not max_bytes >= 1:
        raise UnusableInputError(f"--max-bytes must be at least 1, got {max_bytes}")
    name = printable(str(path))
    try:
        _check_regular(path, name, wanted)
        with path.open("rb") as file:
            large = os.fstat(file.fileno()).st_size > max_bytes
            # It may have grown since.
            content = b"" if large else file.read(max_bytes + 1)
    except UnusableInputError:
        raise
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or one_line(error)
        raise UnusableInputError(f"{name[:200]}: cannot be read ({why})") from error
    if large or len(content) > max_bytes:
        raise UnusableInputError(
            f"{name}: has more than {max_bytes:,} bytes; if it is yours, raise --max-bytes"
        )
    if not content:
        raise UnusableInputError(f"{name}: is empty; give {wanted}")
    return content


def _check_regular(path: Path, name: str, wanted: str) -> None:
    if path.is_dir():
        raise UnusableInputError(f"{name}: is a folder, no regular file; give {wanted}")
    if not path.exists():
        raise UnusableInputError(f"{name}: no such file; give {wanted}")
    if not path.is_file():  # a pipe or a device may never end
        raise UnusableInputError(f"{name}: is no regular file; give {wanted}")
