"""``gradguard evaluate`` without arguments: wall time and memory, its worker processes included."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.process_memory import mebibytes
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
            peak = max(peak, mebibytes(process.pid) / 1024)
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
