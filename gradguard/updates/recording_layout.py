"""How a recording lies in its folder: file names, checks, and whole files or none.

What is written in it is told in :mod:`gradguard.updates.recording`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from gradguard.finite import is_finite
from gradguard.updates.layout import Entries

FORMAT = 1
INDEX, MODEL, LABELS = "index.json", "model.safetensors", "labels"
PART = ".part"
"""How files end that were not finished."""
MOST_ROUND = 10**6
MOST_NAME = 1024
"""Characters of a client's name."""

_SAFE = re.compile(r"[a-z0-9_-]{1,64}")  # no capitals: some file systems know none
_RESERVED = "__metadata__"  # of safetensors
_ROUND = re.compile(r"round-([0-9]{4,7})")

Shapes = dict[str, tuple[int, ...]]


class RecordingError(ValueError):
    """A recording that cannot be written or read; the message says what to do."""


def round_folder(number: int) -> str:
    """The folder of a round."""
    return f"round-{number:04d}"


def round_number(name: str) -> int | None:
    """The number in a round's folder name; ``None`` if it is none."""
    found = _ROUND.fullmatch(name)
    return int(found[1]) if found and round_folder(int(found[1])) == name else None


def message_file(client: str) -> str:
    """The file of a client's message, by its name alone.

    >>> message_file("7"), message_file("../x")
    ('client-7.safetensors', 'hashed-d6b96a97d147daaae49eb87a5ca7bfbc.safetensors')
    """
    return f"{_stem('client', client)}.safetensors"


def reference_file(client: str) -> str:
    """The file of the model that this client got."""
    return f"{_stem('reference', client)}.safetensors"


def labels_file(client: str) -> str:
    """The file of the truth behind a client's message."""
    return f"{_stem('client', client)}.json"


def _stem(kind: str, client: str) -> str:
    if _SAFE.fullmatch(client):
        return f"{kind}-{client}"
    digest = hashlib.sha256(client.encode("utf-8", "backslashreplace")).hexdigest()[:32]
    return f"hashed-{digest}" if kind == "client" else f"hashed-{kind}-{digest}"


def check_client(client: object) -> None:
    """Raise unless it can name a client."""
    if not isinstance(client, str) or not 1 <= len(client) <= MOST_NAME:
        raise RecordingError(
            f"a client's name must be text of 1 to {MOST_NAME} characters, got "
            f"{str(client)[:40]!r} ({type(client).__name__}); say str(node_id)"
        )


def check_count(name: str, value: object) -> None:
    """Raise unless it is a whole number of at least 0."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise RecordingError(f"{name} must be a whole number of at least 0, got {value!r}")


def check_round(number: object) -> None:
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= MOST_ROUND:
        raise RecordingError(f"a round is a whole number from 0 to {MOST_ROUND:,}, got {number!r}")


def check_fits(update: Shapes, model: Shapes, *, who: str) -> None:
    """Raise unless the names and shapes of an update are some of the model's."""
    for name, shape in update.items():
        if name not in model:
            raise RecordingError(f"{who} sent {name!r}, which the model of the round lacks")
        if shape != model[name]:
            raise RecordingError(
                f"{who} sent {name!r} of shape {shape}; in the model of the round it has "
                f"{model[name]}"
            )


def shapes_of(entries: Mapping[str, Tensor]) -> Shapes:
    """The shape of every entry."""
    return {name: tuple(tensor.shape) for name, tensor in entries.items()}


def stored(entries: Entries, *, what: str) -> dict[str, Tensor]:
    """Copies on the CPU that share no memory, checked: at least one, and all finite.

    Raises:
        RecordingError: There is none, one is not finite, or a name cannot be stored.
    """
    if not entries or _RESERVED in entries:
        raise RecordingError(f"{what} must have an entry, and none that is called {_RESERVED!r}")
    found = {}
    for name, tensor in entries.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise RecordingError(f"{what}: expected tensors by name, got {type(tensor).__name__}")
        if tensor.is_complex() or tensor.layout != torch.strided:
            raise RecordingError(f"{what}: {name!r} must be dense and real, got {tensor.dtype}")
        # A copy: tied weights are one tensor under two names, which safetensors refuses.
        kept = tensor.detach().to("cpu", copy=True).contiguous()
        if kept.is_floating_point() and not is_finite(kept):
            raise RecordingError(f"{what}: {name!r} holds NaN or infinity")
        found[name] = kept
    return found


def digest_of(tensors: Mapping[str, Tensor]) -> bytes:
    """Equal for the same names, types, shapes and bits, in whatever order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors that share no memory."""
    # Streamed: as one bytes object a large model would be in memory twice more.
    _write_whole(path, lambda temporary: safetensors.torch.save_file(tensors, temporary))


def write_json(path: Path, table: Mapping[str, Any]) -> None:
    """Write a table under the format's number."""
    text = json.dumps({"format": FORMAT, **table}, allow_nan=False)
    _write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have ``path`` hold all of what ``write`` writes, or what it held before."""
    # Drawn, not a process's number: clients write from several machines into one folder.
    temporary = path.with_name(f".{secrets.token_hex(8)}{PART}")
    try:
        write(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def version() -> str:
    """Of the gradguard that writes."""
    try:
        return metadata.version("gradguard")
    except metadata.PackageNotFoundError:  # a source tree that was never installed
        return "unknown"


def unwritable(folder: Path, error: OSError) -> RecordingError:
    """The error for a folder that cannot be written to."""
    why = os.strerror(error.errno) if error.errno else type(error).__name__
    return RecordingError(f"{folder}: cannot be written to ({why}); give another folder")
