"""Tensors out of zip files that anybody may have written: ``.npz``, and ``.pt`` without objects.

numpy and torch both believe an archive's own numbers. A few bytes can inflate to a terabyte, and
an array's header can claim any shape; so what is claimed is added up before anything is made of it.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from gradguard.evaluation.errors import UnusableInputError

MOST_MEMBERS = 2**16
_PICKLE_BYTES = 2**26  # of names and shapes; the values lie outside of the pickle
_MOST_OPCODES = 2**22  # about 60 a tensor
_DAMAGED = "an archive that is damaged or not what torch.save writes"
_OPCODES = frozenset((
    "PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "BUILD", "BINPERSID", "BINUNICODE", "BINFLOAT",
    "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "EMPTY_TUPLE",
    "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT",
    "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET",
))  # fmt: skip
_STORAGES = (
    "Double", "Float", "Half", "BFloat16", "ComplexDouble", "ComplexFloat", "Long", "Int",
    "Short", "Char", "Byte", "Bool",
)  # fmt: skip
_GLOBALS = frozenset(
    [
        "collections OrderedDict",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
    ]
    + [f"{module} {kind}Storage" for module in ("torch", "torch.cuda") for kind in _STORAGES]
)


def tensors_in_archive(content: bytes, *, max_bytes: int) -> dict[str, Tensor]:
    """The tensors of an ``.npz`` or of a ``.pt`` file, by name.

    Guarantees:

    - nothing is unpickled but dense tensors and plain containers;
    - what the archive's members inflate to is at most ``max_bytes`` together, or it is refused
      before it is read; a ``.pt`` is held twice meanwhile.

    Raises:
        UnusableInputError: It is neither of the two, is damaged, or is beyond the limit.

    >>> file = io.BytesIO()
    >>> np.savez(file, bias=np.array([1.0, -2.0]))
    >>> tensors_in_archive(file.getvalue(), max_bytes=10**6)
    {'bias': tensor([ 1., -2.], dtype=torch.float64)}
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        _check_members(members, max_bytes)
        names = [member.filename for member in members]
        if any(name.endswith("/data.pkl") for name in names):
            return _from_torch(_checked_torch(archive, members))
        if names and all(name.endswith(".npy") for name in names):
            return {m.filename.removesuffix(".npy"): _array(archive, m) for m in members}
    raise UnusableInputError(
        "an archive, but neither what numpy.savez writes nor what torch.save writes; it holds "
        f"{', '.join(names[:3]) or 'nothing'}"
    )


def _check_members(members: list[zipfile.ZipInfo], max_bytes: int) -> None:
    if len(members) > MOST_MEMBERS:
        raise UnusableInputError(f"an archive of {len(members):,} parts; at most {MOST_MEMBERS:,}")
    if len({member.filename for member in members}) < len(members):
        raise UnusableInputError("an archive with two parts of one name; write it again")
    for member in members:
        # zipfile bounds what a step of deflate gives; a step of bzip2 or lzma gives all there is.
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UnusableInputError("an archive packed by another method than deflate")
        if member.flag_bits & 1:
            raise UnusableInputError("an encrypted archive; decrypt it first")
    # zipfile reads no more of a member than this says.
    total = sum(member.file_size for member in members)
    if total > max_bytes:
        raise UnusableInputError(
            f"its parts take {total:,} bytes when unpacked, more than {max_bytes:,}; if it is "
            "yours, raise --max-bytes"
        )


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Tensor:
    """One member, its header held against its size: numpy would allocate what the header claims."""
    name = member.filename.removesuffix(".npy")
    with archive.open(member) as file:
        shape, columns_first, dtype = _npy_header(file)
        if dtype.kind not in "fiu" or dtype.itemsize > 8:
            raise UnusableInputError(f"{name!r}: expected numbers, got an array of {dtype}")
        values = file.read()
    if math.prod(shape) * dtype.itemsize != len(values):
        raise UnusableInputError(
            f"{name!r}: its header says {shape} {dtype}, which is not the {len(values):,} bytes "
            "that follow; the file is damaged"
        )
    order = "F" if columns_first else "C"
    array = np.frombuffer(values, dtype).reshape(shape, order=order)  # type: ignore[call-overload]
    # torch knows neither foreign byte orders nor read-only memory.
    return torch.from_numpy(np.array(array, dtype=dtype.newbyteorder("="), order="C"))


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise UnusableInputError(f"an array in version {version} of numpy's format; use 1 or 2")
    read = np.lib.format.read_array_header_1_0
    if version == (2, 0):
        read = np.lib.format.read_array_header_2_0
    shape, columns_first, dtype = read(file)
    if any(length < 0 for length in shape):
        raise UnusableInputError(f"an array of shape {shape}; the file is damaged")
    return shape, columns_first, dtype


def _checked_torch(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo]) -> bytes:
    """The archive written anew: torch reads zip files by its own rules, and so what was checked."""
    pickles = [m for m in members if m.filename.lower().endswith("data.pkl")]
    if len(pickles) != 1 or len({m.filename.lower() for m in members}) < len(members):
        raise UnusableInputError(_DAMAGED)
    if pickles[0].file_size > _PICKLE_BYTES:
        raise UnusableInputError("names and shapes of more than 64 MiB; this is no message")
    _check_pickle(archive.read(pickles[0]))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as fresh:
        for member in members:
            fresh.writestr(zipfile.ZipInfo(member.filename), archive.read(member))
    return file.getvalue()


def _check_pickle(content: bytes) -> None:
    """Refuse what needs no tensor: ``weights_only`` calls ``bytearray`` with any size."""
    for number, (opcode, value, _) in enumerate(pickletools.genops(content)):
        if number >= _MOST_OPCODES:
            raise UnusableInputError(f"a pickle of more than {_MOST_OPCODES:,} steps; no message")
        foreign = opcode.name == "GLOBAL" and value not in _GLOBALS
        if foreign or opcode.name not in _OPCODES:
            raise UnusableInputError(
                f"holds other objects than dense tensors ({value if foreign else opcode.name}), "
                "which are not read; save a dict of tensors"
            )
        if isinstance(value, int) and not abs(value) < 2**63:
            raise UnusableInputError(_DAMAGED)


def _from_torch(content: bytes) -> dict[str, Tensor]:
    try:
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Not torch's own words: they advise to load it unsafely.
        raise UnusableInputError(
            "holds other objects than tensors, which are not read; save a dict of tensors"
        ) from error
    if not isinstance(found, dict):
        raise UnusableInputError(
            f"expected a dict of tensors by parameter name, got {type(found).__name__}"
        )
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UnusableInputError(
                f"expected a dict of tensors by parameter name, got {type(value).__name__} under "
                f"{name!r}; save the inner dict alone"
            )
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise UnusableInputError(f"{name!r}: expected a dense tensor; save .to_dense()")
    return found
