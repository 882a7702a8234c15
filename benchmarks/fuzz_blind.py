"""Fuzzing where atheris cannot be installed: mutations are drawn without looking at branches."""

from __future__ import annotations

import random
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.fuzz_target import Target, resealed

_TELLING = (0, 1, 2, 7, 8, 9, 16, 63, 64, 127, 128, 129, 255)  # bytes on which parsers stumble

Mutation = Callable[[bytearray, random.Random, Sequence[bytes]], None]


def main(counts: str, *options: str) -> None:
    """Fuzz with those of libFuzzer's options that make sense here."""
    found = dict(re.findall(r"-(\w+)=(\S+)", " ".join(options)))
    inputs, rng = int(found["runs"]), random.Random(int(found["seed"]))
    corpus = [path.read_bytes() for path in sorted(Path(options[-1]).iterdir())]
    target = Target(Path(counts), inputs)
    for number in range(inputs):
        data = corpus[number] if number < len(corpus) else mutated(rng, corpus)
        signal.alarm(int(found["timeout"]))  # ends the process
        try:
            target(data)
        except BaseException:
            Path(found["artifact_prefix"], "crash-input").write_bytes(data)
            raise
        signal.alarm(0)


def mutated(rng: random.Random, corpus: Sequence[bytes]) -> bytes:
    """One of the corpus with one to four mutations, its checksum mostly put right."""
    data = bytearray(rng.choice(corpus))
    for _ in range(rng.randint(1, 4)):
        rng.choice(_MUTATIONS)(data, rng, corpus)
    return resealed(bytes(data), rng.randrange(2**32))


def _flip(data: bytearray, rng: random.Random, corpus: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _put(data: bytearray, rng: random.Random, corpus: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.choice((rng.randrange(256), rng.choice(_TELLING)))


def _insert(data: bytearray, rng: random.Random, corpus: Sequence[bytes]) -> None:
    at = rng.randint(0, len(data))
    data[at:at] = rng.randbytes(rng.choice((1, 1, 2, 8)))


def _remove(data: bytearray, rng: random.Random, corpus: Sequence[bytes]) -> None:
    at = rng.randint(0, len(data))
    del data[at : at + rng.choice((1, 1, 2, 8, 64))]


def _truncate(data: bytearray, rng: random.Random, corpus: Sequence[bytes]) -> None:
    del data[rng.randint(0, len(data)) :]


def _splice(data: bytearray, rng: random.Random, corpus: Sequence[bytes]) -> None:
    other = rng.choice(corpus)
    start, at = rng.randint(0, len(other)), rng.randint(0, len(data))
    size = rng.randint(1, 64)
    data[at : at + size] = other[start : start + size]


_MUTATIONS: tuple[Mutation, ...] = (_flip, _put, _put, _insert, _remove, _truncate, _splice)


if __name__ == "__main__":
    main(*sys.argv[1:])
