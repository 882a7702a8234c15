"""Work that Ctrl-C and a batch system's SIGTERM are not to cut short."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C is often pressed twice; the second is not to stop what the first one asked for."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is ever interrupted, and only it may say how
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
