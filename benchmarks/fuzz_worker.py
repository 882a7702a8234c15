"""The process in which atheris runs; ends with code 0 where every input did what it may do."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any


def main(counts: str, *options: str) -> None:
    """Fuzz with libFuzzer's options."""
    atheris: Any = importlib.import_module("atheris")
    importlib.import_module("gradguard")  # now, for only the wire's branches are to guide
    with atheris.instrument_imports(include=["gradguard.wire"]):
        target = importlib.import_module("benchmarks.fuzz_target")

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        return target.resealed(bytes(atheris.Mutate(data, max_size)), seed)  # type: ignore[no-any-return]

    (runs,) = re.findall(r"-runs=(\d+)", " ".join(options))
    one = target.Target(Path(counts), int(runs))
    atheris.Setup([sys.argv[0], *options], one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
