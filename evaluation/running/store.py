"""Finished units of work as files: each whole or not there, each believed only if it is intact.

``ab/abcdef....json`` holds a result under its content hash, ``ab/abcdef....safetensors`` a model.
There is no pickle in it: a folder from elsewhere can be read without running its code. A checksum
finds what was cut short or changed by accident; it is no signature.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from gradguard.evaluation.errors import UnusableInputError, one_line
from gradguard.evaluation.output import write_atomically
from gradguard.evaluation.running.own_code import digest

FORMAT = 1
LENT = "gradguard-images-{}.safetensors"
LOG = "log.jsonl"
"""A line for every unit that was computed: which, when, how long, by which process."""


LEFT_HALFWAY = re.compile(
    r"([0-9a-f]{2})/(\1[0-9a-f]{38}\.begun|\.\1[0-9a-f]{38}\.(json|safetensors)\.\w+)"
    r"|\.?" + LENT.replace(".", r"\.").format(r"\d+") + r"(\.\w+)?"
)
"""Files that a killed process may have left. No others: the folder may hold its owner's, too."""


class StoreError(UnusableInputError):
    """The folder of results can no longer be written; to compute on would be in vain."""


@dataclass(frozen=True)
class Store:
    """A folder of finished units.

    Guarantees:

    - a file is there whole, under its hash, or not at all: whenever the process is killed;
    - a file that was cut short, changed or belongs to another unit is not taken, and computed anew;
      neither is one that holds no unit's result, whatever its checksum;
    - :meth:`alone` lets one process at a time compute what several would need;
    - files that are not of its making are left alone.

    Not guaranteed: the last of these on network file systems without locks.
    """

    folder: Path

    def path(self, key: str, suffix: str = ".json") -> Path:
        """Where a unit's result lies; in sub-folders, for many files in one are slow to list."""
        return self.folder / key[:2] / f"{key}{suffix}"

    def read(self, key: str) -> Any:
        """The result under ``key``, or ``None`` where there is none that can be believed."""
        try:
            table = json.loads(self.path(key).read_bytes())
            result = table["result"]
            intact = table["format"] == FORMAT and table["digest"] == _checksum(key, result)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return result if intact and kind_of(result) else None

    def write(self, key: str, result: Any) -> None:
        """Keep ``result``, plain data without NaN, under ``key``."""
        table = {"format": FORMAT, "digest": _checksum(key, result), "result": result}
        self._put(self.path(key), json.dumps(table, allow_nan=False).encode())

    def read_tensors(self, key: str) -> dict[str, Tensor] | None:
        """The tensors under ``key``, or ``None`` where there are none that can be believed."""
        described = self.read(key)
        try:
            content = self.path(key, ".safetensors").read_bytes()
            if described is None or described["tensors"] != digest(content):
                return None
            return load(content)
        except (OSError, SafetensorError, KeyError, TypeError):
            return None

    def write_tensors(self, key: str, tensors: dict[str, Tensor], **facts: Any) -> None:
        """Keep tensors under ``key``, and ``facts`` with them.

        Raises:
            UnusableInputError: Some of them are none.
        """
        check_storable(tensors)
        # As safetensors has them: contiguous, and no two in one memory.
        whole = torch.contiguous_format
        content = save({n: t.detach().clone(memory_format=whole) for n, t in tensors.items()})
        self._put(self.path(key, ".safetensors"), content)
        # Last, and with their checksum: without it they are not there.
        self.write(key, facts | {"tensors": digest(content)})

    def has(self, key: str) -> bool:
        """Whether there is a result that can be believed."""
        return self.read(key) is not None

    @contextlib.contextmanager
    def alone(self, key: str) -> Iterator[None]:
        """Only one process at a time is in here with this ``key``."""
        path = self.path(key, ".lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path):
            yield

    @contextlib.contextmanager
    def lent(self, images: Tensor, labels: Tensor) -> Iterator[Path]:
        """A file of images and labels for other processes, while they need it.

        They may be private, and a folder of results is for showing around.
        """
        path = self.folder / LENT.format(os.getpid())
        self._put(path, save({"images": images.contiguous(), "labels": labels.contiguous()}))
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def begin(self, key: str) -> None:
        """Note that a process works on ``key``; :meth:`begun` until :meth:`ended`."""
        path = self.path(key, ".begun")
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    def begun(self, key: str) -> bool:
        """Whether a process works on ``key``, or was killed while it did."""
        return self.path(key, ".begun").exists()

    def ended(self, key: str) -> None:
        """Note that nobody works on ``key``."""
        self.path(key, ".begun").unlink(missing_ok=True)

    def log(self, **facts: Any) -> None:
        """Add a line to the log; one write, so that lines of several processes stay whole."""
        line = json.dumps(facts | {"time": round(time.time(), 3), "process": os.getpid()})
        with self._writing(), (self.folder / LOG).open("ab") as file:
            file.write(line.encode() + b"\n")

    def log_size(self) -> int:
        """Bytes in the log so far."""
        path = self.folder / LOG
        return path.stat().st_size if path.exists() else 0

    def logged(self, start: int) -> set[str]:
        """Keys of what was finished since the log had ``start`` bytes."""
        keys = set()
        with contextlib.suppress(OSError), (self.folder / LOG).open("rb") as file:
            file.seek(start)
            for line in file:
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    keys.add(str(json.loads(line)["key"]))
        return keys

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Make the folder, keep other runs out of it, and remove what a killed one left halfway.

        Raises:
            UnusableInputError: The folder cannot be written, or another run is at work there.
        """
        lock = FileLock(self.folder / "run.lock", blocking=False)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            for pattern in ("*", "*/*"):
                for path in self.folder.glob(pattern):
                    if LEFT_HALFWAY.fullmatch(path.relative_to(self.folder).as_posix()):
                        path.unlink(missing_ok=True)
        except Timeout:
            raise UnusableInputError(
                f"{self.folder}: another gradguard is at work there; wait for it, or choose "
                "another folder"
            ) from None
        except OSError as error:
            raise UnusableInputError(
                f"{self.folder}: cannot be written ({one_line(error)}); choose another folder"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _put(self, path: Path, content: bytes) -> None:
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            why = error.strerror or type(error).__name__
            raise StoreError(
                f"{self.folder}: cannot be written any more ({why}); what is finished is there: "
                "make room, and go on with --resume"
            ) from error


def kind_of(result: Any) -> str | None:
    """The kind of unit whose result has this form, or ``None``: a checksum says nothing of it.

    >>> kind_of({"accuracy": 0.9, "diverged": False}), kind_of({"tensors": "x"})
    ('Trained', None)
    """
    match result:
        case {"calibration": dict(first), "scored": dict(second), "skipped": dict()}:
            fits = first.keys() == second.keys() and _rates(first) and _rates(second)
            return "Attacked" if fits else None
        case {"accuracy": float(share), "diverged": bool()}:
            return "Trained" if 0 <= share <= 1 else None
        case {"step_overhead": float(), "bytes_per_update": float() | int() | None}:
            return "Weighed"
        case {"accuracy": float(share), "tensors": str()}:
            return "Undefended" if 0 <= share <= 1 else None
    return None


def _rates(scores: dict[str, Any]) -> bool:
    """Whether there are success rates by model and batch, of as many for every attack."""
    try:
        found = np.array(list(scores.values()))
    except ValueError:  # of different lengths
        return False
    numbers = found.ndim == 3 and found.dtype.kind in "if"
    return numbers and bool(((found >= 0) & (found <= 1)).all())


def check_storable(state: Mapping[str, Any]) -> None:
    """Raise unless all of a model's state can be kept: tensors can, and what needs pickle cannot.

    Raises:
        UnusableInputError: Some of it is no tensor.
    """
    other = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if other:
        raise UnusableInputError(
            f"a trained model is kept as tensors, and {', '.join(other)} in the model's state is "
            "none; keep it in buffers, or attack at stage 'init' alone"
        )


def _checksum(key: str, result: Any) -> str:
    # With the key: a file that was copied under another name is another unit's.
    return digest(key.encode(), json.dumps(result, sort_keys=True, allow_nan=False).encode())
