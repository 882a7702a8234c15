"""What is done with every input of the fuzzer, and how it is made to reach the parser."""

from __future__ import annotations

import json
import random
import re
import resource
import time
from collections import Counter
from pathlib import Path

import torch

from gradguard import wire
from gradguard.wire.envelope import HEAD_BYTES, sealed

MOST_BYTES = 2**20  # that a decoded input may take
RESEALED = 0.9  # share of inputs whose checksum is put right, so that more than it is tested


class Target:
    """Decodes, inspects, encodes again; raises where an input does what none may do.

    Args:
        counts: A file for numbers of inputs: libFuzzer ends its process without a word.
        inputs: After how many they are final.
    """

    def __init__(self, counts: Path, inputs: int) -> None:
        self._counts, self._total = counts, inputs
        self._inputs = self._accepted = 0
        self._slowest = 0.0
        self._refusals: Counter[str] = Counter()

    def __call__(self, data: bytes) -> None:
        start = time.process_time()  # other processes on the machine do not count
        refusal = check(data)
        self._slowest = max(self._slowest, time.process_time() - start)
        self._inputs += 1
        if refusal is None:
            self._accepted += 1
        else:
            self._refusals[kind_of(refusal)] += 1
        if self._inputs % 1000 == 0 or self._inputs >= self._total:
            self._keep()

    def _keep(self) -> None:
        counts = {
            "inputs": self._inputs,
            "accepted": self._accepted,
            "refusals": dict(self._refusals.most_common()),
            "slowest": self._slowest,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        self._counts.write_text(json.dumps(counts))


def kind_of(refusal: wire.WireError) -> str:
    """The reason without the names and numbers of one input.

    >>> kind_of(wire.WireError("tensor 'a' needs 12 bytes, and only 3 are left: truncated"))
    "tensor '' needs # bytes, and only # are left: truncated"
    """
    return re.sub(r"-?\d+", "#", re.sub(r"'[^']*'|\"[^\"]*\"", "''", str(refusal)))[:80]


def check(data: bytes) -> wire.WireError | None:
    """Why the input is no message, or ``None``. Anything but ``WireError`` comes through.

    Checked of a message: it keeps to the limit, ``inspect`` lists what is decoded, and encoded
    again it decodes to the same bits.
    """
    listing = _listed(data)
    try:
        message = wire.decode(data, max_bytes=MOST_BYTES)
    except wire.WireError as refusal:
        return refusal
    assert listing is not None, "decoded, but not listed"
    assert [(t.name, t.shape, f"torch.{t.dtype}") for t in listing.tensors] == [
        (name, tuple(part.shape), str(part.dtype)) for name, part in message.items()
    ]
    assert sum(part.nbytes for part in message.values()) <= MOST_BYTES
    again = wire.decode(wire.encode(message))
    assert list(again) == list(message)
    for name, part in message.items():
        assert again[name].dtype == part.dtype
        assert again[name].shape == part.shape
        assert torch.equal(_bytes(again[name]), _bytes(part)), name
    return None


def _listed(data: bytes) -> wire.Listing | None:
    try:
        return wire.inspect(data)
    except wire.WireError:
        return None


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def resealed(data: bytes, seed: int) -> bytes:
    """The input with its head, checksum and length put right, most of the time."""
    if len(data) < HEAD_BYTES or random.Random(seed).random() > RESEALED:
        return data
    body = data[HEAD_BYTES:]
    try:
        wire.inspect(sealed([body]))
    except wire.WireError as refusal:
        # Most mutations change the length, and would never get beyond this one refusal.
        if lengths := re.search(r"announces (\d+) bytes, and (\d+) follow", str(refusal)):
            missing = int(lengths[1]) - int(lengths[2])
            body = body[:missing] if missing < 0 else body + bytes(min(missing, 2**12))
    return sealed([body])
