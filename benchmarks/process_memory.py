"""The memory of a command and of all that it has started (Linux)."""

from __future__ import annotations

from pathlib import Path


def mebibytes(pid: int) -> float:
    """Memory of a process and its descendants; pages that they share count once."""
    try:
        folder = Path(f"/proc/{pid}")
        lines = (folder / "smaps_rollup").read_text().splitlines()
        own = sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 2**10
        children = [f.read_text().split() for f in (folder / "task").glob("*/children")]
    except (FileNotFoundError, ProcessLookupError):  # it ended between two looks
        return 0.0
    return own + sum(mebibytes(int(child)) for several in children for child in several)
