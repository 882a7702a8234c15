"""Mutated messages through ``decode`` and ``inspect``: nothing but ``WireError`` may come out.

``python -m benchmarks.fuzz_wire [inputs] [seed] [engine]``; one million inputs without arguments.
With the extra ``fuzz`` (``pip install 'gradguard[fuzz]'``) the engine is ``atheris``, which looks
for inputs that reach new branches; else it is ``blind``, which is worth less.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.table import print_table
from benchmarks.wire_corpus import corpus

INPUTS = 1_000_000
RSS_MB, SECONDS = 1024, 10  # of the process, torch included; of one input
ENGINES = {"atheris": "benchmarks.fuzz_worker", "blind": "benchmarks.fuzz_blind"}


def main(inputs: int = INPUTS, seed: int = 1, engine: str | None = None) -> bool:
    """Fuzz and print; true if every input was decoded or refused by ``WireError``."""
    engine = engine or ("atheris" if importlib.util.find_spec("atheris") else "blind")
    if engine == "blind":
        print("mutations are drawn blindly; pip install 'gradguard[fuzz]' has them guided")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        done, found = fuzz(Path(folder), inputs, seed, engine)
        crashes = [path.read_bytes() for path in Path(folder).glob("*-*") if path.is_file()]
    seconds = time.perf_counter() - start
    tried, refusals = found.get("inputs", 0), found.get("refusals", {})
    edges = re.findall(r" cov: (\d+)", done.stderr)
    print_table(
        f"decode and inspect on mutated messages: {engine}, seed {seed}",
        ["", ""],
        [
            ["inputs", f"{tried:,}"],
            ["seconds, inputs per second", f"{seconds:.0f}, {tried / seconds:,.0f}"],
            ["messages, encoded again and equal", f"{found.get('accepted', 0):,}"],
            [
                "refused by WireError, different reasons",
                f"{sum(refusals.values()):,}, {len(refusals)}",
            ],
            ["branches reached in gradguard.wire", edges[-1] if edges else "not known"],
            ["slowest input, seconds of CPU", f"{found.get('slowest', 0):.3f}"],
            ["memory of the process at most, MB", f"{found.get('peak_mb', 0):.0f}"],
            ["defects", "none" if done.returncode == 0 else f"exit code {done.returncode}"],
        ],
    )
    if done.returncode:
        print(done.stdout[-3000:], done.stderr[-1000:], *(one.hex() for one in crashes), sep="\n")
    return done.returncode == 0 and tried >= inputs


def fuzz(
    folder: Path, inputs: int, seed: int, engine: str
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Fuzz in a process of its own, which a defect may end; and what it has counted."""
    seeds, counts = folder / "corpus", folder / "counts.json"
    seeds.mkdir()
    for name, data in corpus().items():
        (seeds / name).write_bytes(data)
    options = [
        *(f"-runs={inputs}", f"-seed={seed}", f"-timeout={SECONDS}", f"-rss_limit_mb={RSS_MB}"),
        *("-max_len=8192", "-print_final_stats=1", f"-artifact_prefix={folder}/"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", ENGINES[engine], str(counts), *options, str(seeds)],
        capture_output=True,
        text=True,
        errors="replace",
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return done, json.loads(counts.read_text()) if counts.exists() else {}


if __name__ == "__main__":
    given = dict(zip(("inputs", "seed", "engine"), sys.argv[1:], strict=False))
    chosen = {name: int(given[name]) for name in ("inputs", "seed") if name in given}
    sys.exit(0 if main(**chosen, engine=given.get("engine")) else 1)
