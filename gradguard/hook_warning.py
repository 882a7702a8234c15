"""Silence for one warning of torch that every DP-SGD step would repeat."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_hook_warning() -> Iterator[None]:
    """Ignore "Full backward hook is firing": Opacus' hooks are right where inputs need no gradient.

    For loops that gradguard runs itself; a user's loop shows torch's warning once.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        yield
