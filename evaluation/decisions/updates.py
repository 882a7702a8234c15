"""One message from a file, whoever wrote it: safetensors, ``.pt``, ``.npz`` or gradguard's own.

What a file is, its first bytes say and not its name.
"""

from __future__ import annotations

import zipfile
from io import BytesIO
from pathlib import Path

import safetensors.torch
from torch import Tensor

from gradguard import wire
from gradguard.evaluation.bounded_reading import read_bounded
from gradguard.evaluation.decisions.archives import tensors_in_archive
from gradguard.evaluation.errors import UnusableInputError, one_line, printable

MAX_BYTES = 2**30
KINDS = (
    "a .safetensors, .pt or .npz file of tensors by parameter name, or what gradguard.wire wrote"
)
_WIRE, _ZIP = b"\x89gradgrd", b"PK"


def read_update(path: Path, *, max_bytes: int = MAX_BYTES) -> dict[str, Tensor]:
    """The tensors in a file, by name, as they were written.

    Guarantees:

    - no code in the file is run: pickles of anything but tensors are refused;
    - sizes are checked before memory is taken, and the tensors take at most ``max_bytes``
      together, were each copied by itself.

    Not guaranteed: that the values are finite, or that names and shapes fit a model.

    Args:
        max_bytes: Refuse a file of more, and one that unpacks to more.

    Raises:
        UnusableInputError: There is no such file, it is too large, or it holds no tensors.
    """
    content = read_bounded(path, max_bytes, wanted=KINDS)
    name = printable(str(path))
    try:
        found = _decoded(content, max_bytes)
    except UnusableInputError as error:
        raise UnusableInputError(f"{name}: {printable(one_line(error))}") from error
    except Exception as error:  # every way to damage a file has its own exception
        why = printable(one_line(error))[:200]
        raise UnusableInputError(f"{name}: cannot be read ({why}); give {KINDS}") from error
    if not found:
        raise UnusableInputError(f"{name}: holds no tensor; give {KINDS}")
    # A tensor may be one number with a shape of millions, or many the same memory.
    total = sum(part.numel() * part.element_size() for part in found.values())
    if total > max_bytes:
        raise UnusableInputError(
            f"{name}: its tensors take {total:,} bytes, more than {max_bytes:,}; if it is yours, "
            "raise --max-bytes"
        )
    return found


def _decoded(content: bytes, max_bytes: int) -> dict[str, Tensor]:
    if content.startswith(_WIRE):
        return wire.decode(content, max_bytes=max_bytes)
    if content.startswith(_ZIP) and zipfile.is_zipfile(BytesIO(content)):
        return tensors_in_archive(content, max_bytes=max_bytes)
    if content[8:9] == b"{":  # eight bytes of length, then the table of contents as JSON
        tensors: dict[str, Tensor] = safetensors.torch.load(content)
        return tensors
    if content.startswith(b"\x80"):
        raise UnusableInputError(
            "a bare pickle, which may run any code when it is read; save it with torch.save of "
            "torch 1.6 or later, or as .safetensors"
        )
    raise UnusableInputError(f"of no known format; give {KINDS}")
