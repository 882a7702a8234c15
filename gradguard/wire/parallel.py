"""Tensors side by side on as many threads as torch may use.

Only a reader does so. numpy works on one thread and lets others run meanwhile, but a writer's loops
are too short for that. Threads are started for every call: a pool that is kept would be a dead one
in a process that was forked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch

_LONG = 2**17  # elements from which handing a tensor over costs less than waiting for it

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(
    work: Callable[[Item], Result], items: Sequence[Item], sizes: Sequence[int]
) -> list[Result]:
    """``work`` done on every item; the results in order.

    Args:
        work: A function that changes nothing that another item needs.
        items: What to work on.
        sizes: Elements of every item.
    """

    def quietly(item: Item) -> Result:
        with np.errstate(all="ignore"):  # any bits may be numbers, and some overflow
            return work(item)

    threads = min(torch.get_num_threads(), sum(size >= _LONG for size in sizes))
    if threads < 2:
        return [quietly(item) for item in items]
    with ThreadPoolExecutor(threads - 1) as pool:
        # This thread works too, from the other end: the short ones, then what is left.
        long = sorted((at for at, size in enumerate(sizes) if size >= _LONG), key=sizes.__getitem__)
        pending = {at: pool.submit(quietly, items[at]) for at in reversed(long)}
        done = {at: quietly(item) for at, item in enumerate(items) if at not in pending}
        for at in long:
            if pending[at].cancel():
                done[at] = quietly(items[at])
        return [done[at] if at in done else pending[at].result() for at in range(len(items))]
