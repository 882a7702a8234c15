"""Studies that scale: what a second worker gains, and what 200 cells cost in time and memory.

A cell is one defence at one stage, composition, batch size and model seed. Memory is the
proportional set size of the command and all its workers together, looked at five times a second.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from benchmarks.process_memory import mebibytes
from gradguard.evaluation import Study
from gradguard.evaluation.running.bench import prepare
from gradguard.evaluation.running.keys import Keys
from gradguard.evaluation.running.pool import one_thread
from gradguard.evaluation.running.store import LOG, Store
from gradguard.evaluation.running.units import Attacked, tasks_of
from gradguard.evaluation.study import default_table

GRADGUARD = str(Path(sys.executable).parent / "gradguard")
COMPOSITIONS = ["iid", "skewed", "single", "dirichlet:0.1", "dirichlet:1"]
SPEED_UP, MINUTES, MEMORY, OVERHEAD = 1.7, 15.0, 1.2, 0.02


@dataclass(frozen=True)
class Run:
    """One command: seconds, and the most memory that it took, in MiB."""

    seconds: float
    peak: float


def table_of(*, defenses: int, stages: list[str], compositions: list[str]) -> dict[str, Any]:
    """The default study with so many of its defences, at two model seeds."""
    table = default_table()
    table["attack"] |= {"stages": stages, "compositions": compositions}
    return table | {"defense": table["defense"][:defenses]}


def run(table: dict[str, Any], out: Path, *, jobs: int, resume: bool = False) -> Run:
    """``gradguard evaluate`` as a command."""
    out.mkdir(parents=True, exist_ok=True)
    study = out / "study.toml"
    study.write_text(tomli_w.dumps(table))
    command = [GRADGUARD, "evaluate", str(study), "--out", str(out), "--quiet"]
    command += ["--jobs", str(jobs), *(["--resume"] if resume else [])]
    start, peak = time.perf_counter(), 0.0
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            peak = max(peak, mebibytes(process.pid))
            time.sleep(0.2)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return Run(time.perf_counter() - start, peak)


def overhead(table: dict[str, Any], out: Path) -> float:
    """Hashing, writing, and reading twice all units of a finished run, over their own time."""
    with one_thread():  # as a run does: what a model answers is in the keys, to the last digit
        return _overhead(Store(out / "cells"), Study.from_dict(table))


def _overhead(store: Store, study: Study) -> float:
    bench = prepare(study)
    units = [unit for task in tasks_of(study, jobs=2) for unit in task]
    start = time.perf_counter()
    made = Keys(bench)
    keys = {unit: made.of(unit) for unit in units}
    held = [store.has(key) for key in keys.values()]  # as with --resume
    results = {key: store.read(key) for key in keys.values()}
    with tempfile.TemporaryDirectory() as folder:
        other = Store(Path(folder))
        for key, result in results.items():
            other.write(key, result)
    taken = time.perf_counter() - start
    assert all(held)
    lines = (store.folder / LOG).read_text().splitlines()
    return taken / float(sum(json.loads(line).get("seconds", 0) for line in lines))


def cells_in(table: dict[str, Any]) -> int:
    """How many cells a study has."""
    tasks = tasks_of(Study.from_dict(table), jobs=1)
    return sum(isinstance(unit, Attacked) for task in tasks for unit in task)


def speed_up(folder: Path) -> bool:
    """32 cells with the defaults of a study file, by one worker and by two; and a short study."""
    short = table_of(defenses=8, stages=["init", "trained"], compositions=["skewed"])
    usual = default_table()
    usual |= {"attack": {"seeds": 2}, "defense": usual["defense"][:2]}
    gained = {}
    for name, table in {"short": short, "usual": usual}.items():
        one, two = (run(table, folder / f"{name}-{jobs}", jobs=jobs).seconds for jobs in (1, 2))
        gained[name] = one / two
        print(
            f"{name}: {cells_in(table)} cells, {Study.from_dict(table).attack.trials} trials each; "
            f"one worker {one:.0f} s, two {two:.0f} s: {gained[name]:.2f} times"
        )
    print(f"speed-up of two workers on the usual study at least {SPEED_UP}")
    return gained["usual"] >= SPEED_UP


def growth(folder: Path) -> bool:
    """20 cells and 200, with two workers."""
    few = table_of(defenses=10, stages=["init"], compositions=["skewed"])
    many = table_of(defenses=10, stages=["init", "trained"], compositions=COMPOSITIONS)
    small = run(few, folder / "few", jobs=2)
    large = run(many, folder / "many", jobs=2)
    again = run(many, folder / "many", jobs=2, resume=True)
    share = overhead(many, folder / "many")
    print(f"{cells_in(few)} cells: {small.seconds:.0f} s, at most {small.peak:.0f} MiB")
    print(f"{cells_in(many)} cells: {large.seconds:.0f} s, at most {large.peak:.0f} MiB")
    print(f"the same with --resume, all finished: {again.seconds:.0f} s")
    print(f"memory: {large.peak / small.peak:.2f} times (at most {MEMORY})")
    print(f"hashing, storing and resuming: {100 * share:.2f} % (at most {100 * OVERHEAD:.0f} %)")
    return large.seconds <= 60 * MINUTES and large.peak <= MEMORY * small.peak and share <= OVERHEAD


def main() -> bool:
    """Both; whether every target was met."""
    folder = Path(tempfile.mkdtemp(prefix="gradguard-studies-"))
    try:
        return all([speed_up(folder / "speed"), growth(folder / "growth")])
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(not main())
