"""Run all benchmarks, or those named: ``python -m benchmarks [demo llg_plus_speed ...]``."""

from __future__ import annotations

import importlib
import sys
import time

from benchmarks.mnist import NoImagesError

NAMES = (
    "llg_reproduction",
    "llg_plus_speed",
    "worst_case",
    "dp_step",
    "dp_tradeoff",
    "demo",
    "speed",
    "attackers",
    "attack_cost",
    "hundred_classes",
    "knowledge",
    "fuzz_wire",
    "studies",
    "page",
    "flower",
)


def run(names: list[str]) -> int:
    """Run them in order; 0 if every target was met, 1 otherwise, 2 for an unknown name."""
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        print(f"unknown benchmark {unknown[0]!r}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    missed = []
    for name in names or NAMES:
        print(f"== {name}", flush=True)
        start = time.perf_counter()
        try:
            met = importlib.import_module(f"benchmarks.{name}").main()
        except NoImagesError as error:
            print(f"skipped: {error}")
            continue
        print(f"   {'met' if met else 'NOT MET'}, {time.perf_counter() - start:.0f} s", flush=True)
        if not met:
            missed.append(name)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
