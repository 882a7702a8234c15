"""``gradguard evaluate`` without arguments: wall time and memory, its worker processes included."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.table import print_table

SECONDS, GIBIBYTES = 90.0, 2.0


def main() -> bool:
    """Print both; true if within the limits (meant for two cores)."""
    command = str(Path(sys.executable).with_name("gradguard"))
    peak = 0.0
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        process = subprocess.Popen(
            [command, "evaluate", "--out", folder],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None:
            peak = max(peak, _gibibytes(process.pid))
            time.sleep(0.2)
        seconds = time.perf_counter() - start
    print_table(
        "the demo",
        ["", "here", "at most"],
        [
            ["wall seconds", f"{seconds:.1f}", f"{SECONDS:.0f}"],
            ["peak GiB, all processes", f"{peak:.2f}", f"{GIBIBYTES:.0f}"],
            ["exit code", str(process.returncode), "0"],
        ],
    )
    return seconds <= SECONDS and peak <= GIBIBYTES and process.returncode == 0


def _gibibytes(pid: int) -> float:
    """Memory of a process and its descendants, pages that they share counted once (Linux)."""
    try:
        folder = Path(f"/proc/{pid}")
        lines = (folder / "smaps_rollup").read_text().splitlines()
        own = sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 2**20
        children = (folder / "task" / str(pid) / "children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):  # it ended between two looks
        return 0.0
    return own + sum(_gibibytes(int(child)) for child in children)
