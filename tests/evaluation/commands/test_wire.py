"""``gradguard wire`` through the real command line."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

from gradguard import wire
from gradguard.evaluation.commands.wire import print_listing, to_json
from gradguard.evaluation.errors import printable
from tests.evaluation.examples import run

MESSAGE = {"layer.weight": torch.arange(600.0).reshape(20, 30), "layer.bias": torch.zeros(30)}


def written(path: Path, message: Mapping[str, Tensor] = MESSAGE) -> Path:
    path.write_bytes(wire.encode(message))
    return path


def listed(message: Mapping[str, Tensor], *, rows: int = 40, width: int = 100) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=width, highlight=False, force_terminal=True)
    print_listing(wire.inspect(wire.encode(message)), console, rows=rows)
    return stream.getvalue()


def test_every_tensor_and_the_totals_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "message")
    assert run("wire", path) == 0
    said = capsys.readouterr()
    assert said.err == ""
    for shown in ("layer.weight", "20 x 30", "float32", "layer.bias", "bits per"):
        assert shown in said.out
    size = path.stat().st_size
    assert f"2 tensors, 630 values: {size:,} bytes, 2,520 uncompressed" in said.out


def test_what_is_listed_adds_up_to_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sparse = torch.zeros(100, 100)
    sparse.view(-1)[::97] = torch.randn(104)
    path = written(tmp_path / "message", MESSAGE | {"sparse": sparse})
    assert run("wire", path, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == 1
    assert found["total_bytes"] == path.stat().st_size
    parts = found["header_bytes"] + sum(found["shared"].values())
    assert found["total_bytes"] == parts + sum(one["bytes"] for one in found["tensors"])
    assert [(one["name"], one["shape"], one["values"]) for one in found["tensors"]] == [
        ("layer.weight", [20, 30], 600),
        ("layer.bias", [30], 30),
        ("sparse", [100, 100], 10_000),
    ]


def test_a_long_listing_shows_the_tensors_with_the_most_bytes() -> None:
    message = {f"small.{i}": torch.randn(3) for i in range(300)} | {"large": torch.randn(500)}
    text = listed(message, rows=2)
    assert "large" in text
    assert "small.0" in text
    assert "small.1" not in text
    assert "299 tensors with fewer bytes" in text
    assert "301 tensors, 1,400 values" in text


def test_names_are_neither_markup_nor_control_codes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = "[red]x[/red]\x1b[2J\x07\r\n\x9b31m\u202e\x7f"
    message = {hostile: torch.ones(3), "layer " + "y" * 4000: torch.ones(3)}
    text = listed(message)
    assert "[red]x[/red]\\x1b[2J" in text
    for raw in ("\x1b[2J", "\x07", "\r", "\x9b", "\u202e", "\x7f"):
        assert raw not in text
        assert raw not in to_json(wire.inspect(wire.encode(message)))
    assert json.loads(to_json(wire.inspect(wire.encode(message))))["tensors"][0]["name"] == hostile
    path = written(tmp_path / "message", message)
    assert run("wire", path) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_odd_tensors_are_listed() -> None:
    text = listed({"": torch.tensor(2.0), "none": torch.zeros(3, 0)})
    assert "scalar" in text
    assert "3 x 0" in text
    assert "0 tensors, 0 values" in listed({})


@pytest.mark.parametrize("width", [40, 50, 80, 120])
def test_a_narrow_terminal_folds_words_and_cuts_no_number(width: int) -> None:
    rng = torch.Generator().manual_seed(0)
    message = {
        "encoder.layers.11.attention.projection.weight": torch.randn(300, 700, generator=rng),
        "few": torch.where(torch.rand(90_000, generator=rng) < 0.2, torch.randn(90_000), 0.0),
        "y" * 4000: torch.zeros((1,) * 60).to(torch.float8_e4m3fn),
        "indices": torch.nn.functional.one_hot(torch.tensor(7), 10_000).double() * 1.7,
    }
    text = listed(message, width=width)
    listing = wire.inspect(wire.encode(message))
    for size in (*(t.bytes for t in listing.tensors), *dict(listing.shared).values()):
        assert (f" {size:,} " if size else " shared ") in text
    assert f" {listing.header_bytes:,} " in text
    assert " 32 " in text
    assert len(text.splitlines()) < 100
    assert max(map(len, re.sub(r"\x1b\[\d+m", "", text).splitlines())) <= width
    assert "y" * 50 not in text


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_listing_that_cannot_be_written_is_one_line(tmp_path: Path, options: list[str]) -> None:
    path = written(tmp_path / "message")
    program = "from gradguard.evaluation.cli import main; main()"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program, "wire", str(path), *options],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2
    assert done.stderr.startswith("gradguard: the listing cannot be written (No space left")
    assert len(done.stderr.splitlines()) == 1


def test_printable_text_is_left_as_it_is() -> None:
    assert printable("größe 重み [b]") == "größe 重み [b]"


def check_refused(code: int, said: pytest.CaptureFixture[str], fragment: str) -> None:
    found = said.readouterr()
    assert code == 2
    assert found.out == ""
    assert len(found.err.splitlines()) == 1
    assert found.err.startswith("gradguard: ")
    assert fragment in found.err
    assert "\x1b" not in found.err


def test_a_file_that_holds_no_message_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = wire.encode(MESSAGE)
    for content, fragment in (
        (b"", "is empty"),
        (b"PK\x03\x04 an archive", "a message begins with"),
        (b"\x1b[2J\n" * 10, "a message begins with"),
        (data[:-1], "checksum"),
        (data[:5], "truncated"),
        (data + b"\0", "checksum"),
        (data[:8] + b"\x63" + data[9:], "version 99"),
    ):
        path = tmp_path / "file"
        path.write_bytes(content)
        check_refused(run("wire", path), capsys, fragment)


def test_what_is_no_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, fragment in (
        (tmp_path, "is a folder"),
        (tmp_path / "none", "no such file"),
        (tmp_path / "pipe", "no regular file"),
        (Path("/dev/zero"), "no regular file"),
        (Path("x" * 5000), "cannot be read"),
        (tmp_path / "\x1b[2J", "no such file"),
    ):
        check_refused(run("wire", path), capsys, fragment)


def test_a_file_beyond_the_limit_is_refused_without_reading_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "message")
    size = path.stat().st_size
    assert run("wire", path, "--max-bytes", str(size)) == 0
    capsys.readouterr()
    check_refused(run("wire", path, "--max-bytes", str(size - 1)), capsys, "raise --max-bytes")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2**40)
    check_refused(run("wire", tmp_path / "huge"), capsys, "more than 1,073,741,824 bytes")


def test_bad_options_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "message")
    check_refused(run("wire", path, "--rows", "0"), capsys, "--rows must be")
    check_refused(run("wire", path, "--max-bytes", "0"), capsys, "--max-bytes must be")
    check_refused(run("wire"), capsys, "FILE")
