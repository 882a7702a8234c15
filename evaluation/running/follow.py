"""What workers elsewhere have done so far, from the log that they write into the store."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator

from gradguard.evaluation.progress import Progress
from gradguard.evaluation.running.store import LOG, Store

SECONDS = 0.3  # between looks


@contextlib.contextmanager
def following(store: Store, progress: Progress) -> Iterator[None]:
    """Tell ``progress`` of every unit that is logged meanwhile.

    A file is all that workers of any backend share: none of joblib's for clusters hands results
    over before all are there.
    """
    path, over = store.folder / LOG, threading.Event()
    start = path.stat().st_size if path.exists() else 0

    def look(position: int) -> int:
        with contextlib.suppress(OSError, ValueError), path.open("rb") as file:
            file.seek(position)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # half written: next time
                position += len(line)
                entry = json.loads(line)
                progress.doing(str(entry["unit"]))
                if not entry.get("shared"):  # trained on the way to another unit
                    progress.advance()
        return position

    def watch(position: int) -> None:
        while not over.wait(SECONDS):
            position = look(position)
        look(position)

    thread = threading.Thread(target=watch, args=(start,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
