"""``gradguard evaluate`` without arguments: wall time and peak memory of the whole process."""

from __future__ import annotations

import os
import sys
import tempfile
import time

from benchmarks.table import print_table

SECONDS, GIBIBYTES = 90.0, 2.0


def main() -> bool:
    """Print both; true if within the limits (meant for two cores)."""
    command = [sys.executable, "-m", "gradguard", "evaluate"]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        process = os.posix_spawn(
            sys.executable, [*command, "--out", folder], os.environ | {"TERM": "dumb"}
        )
        # wait4 accounts for this one process; getrusage would take the largest child so far.
        _, status, usage = os.wait4(process, 0)
        seconds = time.perf_counter() - start
    memory = usage.ru_maxrss / 2**20  # KiB on Linux
    print_table(
        "the demo",
        ["", "here", "at most"],
        [
            ["wall seconds", f"{seconds:.1f}", f"{SECONDS:.0f}"],
            ["peak GiB", f"{memory:.2f}", f"{GIBIBYTES:.0f}"],
            ["exit code", str(os.waitstatus_to_exitcode(status)), "0"],
        ],
    )
    return seconds <= SECONDS and memory <= GIBIBYTES and status == 0
