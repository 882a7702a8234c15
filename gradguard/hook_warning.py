"""Silence for one warning of torch that every DP-SGD step would repeat."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

MESSAGE = "Full backward hook is firing"


def ignore_hook_warning() -> None:
    """Ignore torch's warning from now on: Opacus' hooks are right where inputs need no gradient.

    In the whole process, because the loop that would show it at every step is the user's.
    """
    warnings.filterwarnings("ignore", message=MESSAGE)


@contextmanager
def without_hook_warning() -> Iterator[None]:
    """The same for a loop that gradguard runs itself, leaving the filters as they were."""
    with warnings.catch_warnings():
        ignore_hook_warning()
        yield
