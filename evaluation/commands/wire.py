"""``gradguard wire``: lists what a file of encoded bytes holds, without decoding it."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradguard import wire
from gradguard.evaluation.bounded_reading import read_bounded
from gradguard.evaluation.errors import UnusableInputError, one_line, printable
from gradguard.evaluation.views.table import make_console

MAX_BYTES = 2**30
ROWS = 40
_NAME, _SHAPE = 32, 20  # columns of the table


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="One encoded message.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with all tensors.")] = False,
    rows: Annotated[int, typer.Option(help="Show so many tensors, the largest.")] = ROWS,
    max_bytes: Annotated[int, typer.Option(help="Refuse a larger file.")] = MAX_BYTES,
) -> None:
    """List what an encoded message holds, tensor by tensor, without decoding it."""
    raise typer.Exit(run_wire(file, as_json=as_json, rows=rows, max_bytes=max_bytes))


def run_wire(path: Path, *, as_json: bool, rows: int, max_bytes: int) -> int:
    """List the message in a file; 0.

    Args:
        as_json: Print JSON, with all tensors, instead of a table.
        rows: At most so many tensors in the table, those that take the most bytes.
        max_bytes: Refuse a larger file before reading it.

    Raises:
        UnusableInputError: There is no such file, it is too large, or it holds no message; or the
            listing cannot be written.
    """
    if not rows >= 1:
        raise UnusableInputError(f"--rows must be at least 1, got {rows}")
    if not max_bytes >= 1:
        raise UnusableInputError(f"--max-bytes must be at least 1, got {max_bytes}")
    data = read_bounded(path, max_bytes, wanted="the file of one encoded message")
    try:
        listing = wire.inspect(data)
    except wire.WireError as error:
        raise UnusableInputError(f"{_named(path)}: {printable(one_line(error))}") from error
    with _output_checked():
        if as_json:
            print(to_json(listing))
        else:
            print_listing(listing, make_console(), rows=rows)
        sys.stdout.flush()
    return 0


def print_listing(listing: wire.Listing, console: Console, *, rows: int = ROWS) -> None:
    """The table, what it leaves out, and the totals."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    # Where the terminal is narrow, words are folded and numbers never cut.
    for name, width in (("tensor", _NAME), ("shape", _SHAPE), ("dtype", None), ("codec", None)):
        table.add_column(name, overflow="fold", max_width=width)
    for name in ("bytes", "bits per\nvalue"):
        table.add_column(name, justify="right", no_wrap=True)
    shown = _largest(listing.tensors, rows)
    for tensor in shown:
        shape = " x ".join(map(str, tensor.shape)) or "scalar"
        # Text, not str: a name from a stranger is not to be read as markup or as control codes.
        table.add_row(
            *(_short(printable(tensor.name), _NAME), _short(shape, 2 * _SHAPE)),
            *(tensor.dtype, tensor.codec),
            *(_own(tensor), _bits(tensor.bytes, _values(tensor)) if tensor.bytes else "-"),
        )
    for name, size in (*listing.shared, ("names and shapes", listing.header_bytes)):
        table.add_row(f"shared: {name}", "", "", "", f"{size:,}", "")
    console.print(table)
    if len(shown) < len(listing.tensors):
        left = len(listing.tensors) - len(shown)
        rest = sum(t.bytes for t in listing.tensors) - sum(t.bytes for t in shown)
        console.print(Text(f"{left:,} tensors with fewer bytes, together {rest:,}, are not shown."))
    console.print(Text(totals(listing), style="bold"))


def totals(listing: wire.Listing) -> str:
    """One plain sentence.

    >>> import torch
    >>> totals(wire.inspect(wire.encode({"w": torch.zeros(10, 10)})))
    '1 tensor, 100 values: 29 bytes, 400 uncompressed (13.8 times less); 2.32 bits per value.'
    """
    values = sum(_values(tensor) for tensor in listing.tensors)
    count = len(listing.tensors)
    return (
        f"{count:,} tensor{'s' * (count != 1)}, {values:,} values: {listing.total_bytes:,} bytes, "
        f"{listing.dense_bytes:,} uncompressed "
        f"({listing.dense_bytes / listing.total_bytes:.3g} times less); "
        f"{_bits(listing.total_bytes, values)} bits per value."
    )


def to_json(listing: wire.Listing) -> str:
    """For machines: all that the listing says, and the number of values of each tensor."""
    tensors = [asdict(tensor) | {"values": _values(tensor)} for tensor in listing.tensors]
    content = {"schema": 1} | asdict(listing) | {"shared": dict(listing.shared)}
    text = json.dumps(content | {"tensors": tensors}, indent=2, allow_nan=False)
    return text.replace("\x7f", "\\u007f")  # the one control character that json leaves as it is


def _short(text: str, most: int) -> Text:
    short = Text(text)
    short.truncate(most, overflow="ellipsis")
    return short


@contextmanager
def _output_checked() -> Iterator[None]:
    """Says in one line where printing fails: on a full disk, for one."""
    try:
        yield
    except OSError as error:
        # What is left in the buffer would fail again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # as of `| head`, which has read enough
            raise SystemExit(1) from None
        raise UnusableInputError(f"the listing cannot be written ({error.strerror})") from error


def _largest(tensors: tuple[wire.TensorListing, ...], most: int) -> list[wire.TensorListing]:
    """Those with the most bytes, in the order of the message; the earlier ones among equals."""
    order = sorted(range(len(tensors)), key=lambda i: (-tensors[i].bytes, i))
    return [tensors[i] for i in sorted(order[:most])]


def _own(tensor: wire.TensorListing) -> str:
    # A sparse tensor's indices and values may lie among those of all the others.
    return f"{tensor.bytes:,}" if tensor.bytes or not _values(tensor) else "shared"


def _values(tensor: wire.TensorListing) -> int:
    return math.prod(tensor.shape)


def _bits(size: int, values: int) -> str:
    return f"{8 * size / values:.3g}" if values else "-"


def _named(path: Path) -> str:
    return printable(str(path))
