"""Messages out of files that anybody may have written."""

from __future__ import annotations

import io
import pickle
import struct
import tempfile
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gradguard import wire
from gradguard.evaluation import UnusableInputError, read_update

MESSAGE = {"layer.weight": torch.randn(3, 4), "layer.bias": torch.zeros(3)}


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def saved(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


FORMATS = {
    "safetensors": safetensors.torch.save(MESSAGE),
    "pt": saved(MESSAGE),
    "npz": npz(**{name: part.numpy() for name, part in MESSAGE.items()}),
    "wire": wire.encode(MESSAGE),
}


def read(content: bytes, path: Path, *, max_bytes: int = 10**6) -> dict[str, Tensor]:
    path.write_bytes(content)
    return read_update(path, max_bytes=max_bytes)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_tensors_that_were_written_whatever_the_file_is_called(
    kind: str, tmp_path: Path
) -> None:
    found = read(FORMATS[kind], tmp_path / "message.bin")
    assert found.keys() == MESSAGE.keys()
    for name, part in MESSAGE.items():
        assert torch.equal(found[name], part)


def test_arrays_of_either_order_and_byte_order_are_read(tmp_path: Path) -> None:
    array = np.arange(6.0).reshape(2, 3)
    content = npz(f=np.asfortranarray(array), big=array.astype(">f4"))
    found = read(content, tmp_path / "a.npz")
    assert torch.equal(found["f"], torch.from_numpy(array))
    assert torch.equal(found["big"], torch.from_numpy(array.astype(np.float32)))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("cut", [1, 9, 30, 0.5, 0.9])
def test_a_cut_file_is_refused_in_one_line(kind: str, cut: float, tmp_path: Path) -> None:
    content = FORMATS[kind]
    size = int(cut) if cut >= 1 else int(cut * len(content))
    with pytest.raises(UnusableInputError) as refused:
        read(content[:size], tmp_path / "cut")
    assert "\n" not in str(refused.value)


@given(st.data())
def test_a_damaged_file_is_read_or_refused_and_nothing_else(data: st.DataObject) -> None:
    content = bytearray(FORMATS[data.draw(st.sampled_from(sorted(FORMATS)))])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = read(bytes(content), Path(folder) / "damaged")
        except UnusableInputError:
            return
    assert all(isinstance(part, Tensor) for part in found.values())


def test_an_archive_that_inflates_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    np.savez_compressed(file, a=np.zeros(10**7, np.uint8))
    assert len(file.getvalue()) < 20_000
    with pytest.raises(UnusableInputError, match="when unpacked"):
        read(file.getvalue(), tmp_path / "bomb.npz")
    whole = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved({"a": torch.zeros(10**6)}))) as plain,
        zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for member in plain.infolist():
            packed.writestr(member.filename, plain.read(member))
    with pytest.raises(UnusableInputError, match="when unpacked"):
        read(whole.getvalue(), tmp_path / "bomb.pt")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("kind", ["npz", "pt"])
def test_an_archive_packed_by_a_method_that_inflates_in_one_step_is_refused(
    kind: str, method: int, tmp_path: Path
) -> None:
    with pytest.raises(UnusableInputError, match="another method than deflate"):
        read(repacked(FORMATS[kind], method=method), tmp_path / "bomb")


def test_an_encrypted_archive_is_refused(tmp_path: Path) -> None:
    content = bytearray(FORMATS["npz"])
    entry = content.index(b"PK\x01\x02")
    content[entry + 8] |= 1
    with pytest.raises(UnusableInputError, match="encrypted"):
        read(bytes(content), tmp_path / "a.npz")


def repacked(
    content: bytes, members: dict[str, bytes] | None = None, *, method: int = zipfile.ZIP_STORED
) -> bytes:
    """The archive packed by another method; ``members`` replace those of that stem, or are new."""
    members = dict(members or {})
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w", method) as new:
        for member in old.namelist():
            stem = member.rpartition("/")[2].partition(".")[0]
            new.writestr(member, members.pop(stem, old.read(member)))
        for stem, value in members.items():
            new.writestr(stem, value)
    return file.getvalue()


def calling(module: str, name: str, number: int) -> bytes:
    """A pickle that calls ``name`` of ``module`` with one number."""
    return f"\x80\x02}}X\x01\0\0\0ac{module}\n{name}\nJ".encode("latin-1") + (
        struct.pack("<i", number) + b"\x85Rs."
    )


@pytest.mark.parametrize(
    "called",
    [
        ("__builtin__", "bytearray"),
        ("builtins", "bytearray"),
        ("torch", "Size"),
        ("torch.storage", "UntypedStorage"),
        ("torch._utils", "_rebuild_meta_tensor_no_storage"),
    ],
)
def test_a_pickle_that_calls_what_makes_no_tensor_is_refused_before_it_runs(
    called: tuple[str, str], tmp_path: Path
) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(UnusableInputError, match="other objects than dense tensors"):
            read(
                repacked(FORMATS["pt"], {"data": calling(*called, 200 * 2**20)}),
                tmp_path / "bomb.pt",
            )
        assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    finally:
        tracemalloc.stop()


def test_a_second_pickle_that_torch_might_read_instead_is_refused(tmp_path: Path) -> None:
    for name in ("other/data.pkl", "archive/DATA.PKL", "ARCHIVE/version"):
        content = repacked(FORMATS["pt"], {name: calling("__builtin__", "bytearray", 9)})
        with pytest.raises(UnusableInputError, match="not what"):
            read(content, tmp_path / "two.pt")


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02}X\x01\0\0\0a\x8a\x20" + b"\x7f" * 32 + b"s.",  # a number of 256 bits
        b"\x80\x02" + b"N" * (2**22) + b".",
        b"\x80\x04\x8c\x01a\x94.",
        b"cos\nsystem\n.",
    ],
)
def test_a_pickle_of_other_steps_is_refused(pickled: bytes, tmp_path: Path) -> None:
    with pytest.raises(UnusableInputError, match=r"not what torch|steps|other objects"):
        read(repacked(FORMATS["pt"], {"data": pickled}), tmp_path / "odd.pt", max_bytes=10**8)


def test_a_state_dict_a_parameter_and_shared_memory_are_read(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    for state in (model.state_dict(), dict(model.named_parameters())):
        found = read(saved(state), tmp_path / "state.pt")
        assert all(torch.equal(found[name], part) for name, part in state.items())
    kinds = (torch.half, torch.bfloat16, torch.double, torch.int64, torch.bool)
    parts = {str(kind): torch.ones(2, dtype=kind) for kind in kinds}
    parts |= {"one": MESSAGE["layer.weight"][0], "two": MESSAGE["layer.weight"].T}
    found = read(saved(parts), tmp_path / "parts.pt")
    assert all(torch.equal(found[name], part) for name, part in parts.items())


def test_an_array_header_that_claims_more_than_follows_is_refused(tmp_path: Path) -> None:
    header = io.BytesIO()
    claimed = {"descr": "<f8", "fortran_order": False, "shape": (10**12,)}
    np.lib.format.write_array_header_1_0(header, claimed)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", header.getvalue() + bytes(16))
    with pytest.raises(UnusableInputError, match="which is not the 16 bytes"):
        read(file.getvalue(), tmp_path / "a.npz")


def test_a_wire_message_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    content = wire.encode({"a": torch.zeros(10**6)})
    assert len(content) < 1000
    with pytest.raises(UnusableInputError, match="max_bytes"):
        read(content, tmp_path / "a")


def test_one_number_expanded_to_a_large_tensor_is_refused(tmp_path: Path) -> None:
    content = saved({"a": torch.zeros(1).expand(10**12)})
    with pytest.raises(UnusableInputError, match="its tensors take 4,000,000,000,000 bytes"):
        read(content, tmp_path / "a.pt")


class Dangerous:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran"),))


def test_no_code_in_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for content in (
        saved({"a": Dangerous()}),
        pickle.dumps(Dangerous()),
        npz(a=np.array([Dangerous()], dtype=object)),
    ):
        with pytest.raises(UnusableInputError) as refused:
            read(content, tmp_path / "message")
        assert "weights_only" not in str(refused.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"hello, world", "of no known format"),
        (saved([torch.zeros(2)]), "got list"),
        (saved({"state_dict": MESSAGE}), "save the inner dict alone"),
        (saved({"a": torch.eye(2).to_sparse()}), "dense"),
        (npz(a=np.array(["text"])), "expected numbers"),
        (npz(a=np.array([1j])), "expected numbers"),
        (safetensors.torch.save({}), "holds no tensor"),
    ],
)
def test_other_content_is_refused_with_what_to_do(
    content: bytes, says: str, tmp_path: Path
) -> None:
    with pytest.raises(UnusableInputError, match=says):
        read(content, tmp_path / "message")


def test_a_large_file_a_folder_and_no_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableInputError, match="more than 100 bytes"):
        read(FORMATS["pt"], tmp_path / "m.pt", max_bytes=100)
    with pytest.raises(UnusableInputError, match="no regular file"):
        read_update(tmp_path)
    with pytest.raises(UnusableInputError, match="no such file"):
        read_update(tmp_path / "missing\x1b[2J")
    with pytest.raises(UnusableInputError, match="--max-bytes"):
        read_update(tmp_path / "m.pt", max_bytes=0)
