"""Timing in turns: every operation once, then all again, so that a busy moment hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

Work = Callable[[], object]


def in_turns(
    operations: Mapping[str, Work], *, before: Work, repeats: int, warm_up: int = 1
) -> dict[str, float]:
    """Median seconds of each operation.

    Args:
        operations: What is timed, by name.
        before: Run before each operation and not timed: it restores what operations overwrite.
        repeats: Turns that count.
        warm_up: Turns that do not: memory is touched and scratch buffers grow to their size.
    """
    seconds: dict[str, list[float]] = {name: [] for name in operations}
    for turn in range(warm_up + repeats):
        for name, work in operations.items():
            before()
            start = time.perf_counter()
            result = work()
            taken = time.perf_counter() - start
            del result  # freeing what it made is part of nobody's time
            if turn >= warm_up:
                seconds[name].append(taken)
    return {name: median(taken) for name, taken in seconds.items()}
