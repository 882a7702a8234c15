"""A real run that is killed again and again loses nothing and computes nothing twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.test_cli import GRADGUARD, write_study

KILLS = 20

STUDY: dict[str, Any] = {
    "training": {"steps": 150, "seeds": 2},
    "attack": {
        "stages": ["init", "trained"],
        "compositions": ["iid", "skewed"],
        "attackers": ["LLG", "TemplateRegression(all)"],
        "simulated": 40,
    },
}


def start(study: Path, out: Path, *, jobs: int) -> subprocess.Popen[bytes]:
    command = [GRADGUARD, "evaluate", str(study), "--quiet"]
    command += ["--out", str(out), "--jobs", str(jobs), "--resume"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, start_new_session=True, stderr=subprocess.PIPE
    )


def finished(out: Path) -> int:
    log = out / "cells" / "log.jsonl"
    return len(log.read_bytes().splitlines()) if log.exists() else 0


def timeless(out: Path) -> str:
    report = json.loads((out / "report.json").read_text())
    for row in report["rows"]:
        row["step_overhead"] = None
    for key in ("started", "wall_seconds", "command"):
        del report["provenance"][key]
    return json.dumps(report)


def kill_at(
    process: subprocess.Popen[bytes], out: Path, units: int, after: float, whole: bool
) -> bool:
    """Kill once so many units are there, and some seconds later; whether it was still running."""
    while process.poll() is None and finished(out) < units:
        time.sleep(0.005)
    time.sleep(after)
    alive = process.poll() is None
    if alive:
        (os.killpg if whole else os.kill)(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    return alive


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_killed_at_random_moments_a_run_ends_with_the_same_report(
    tmp_path: Path, jobs: int
) -> None:
    study = write_study(tmp_path, **STUDY)
    plain, killed = tmp_path / "plain", tmp_path / "killed"
    process = start(study, plain, jobs=jobs)
    _, complained = process.communicate(timeout=120)
    assert process.returncode == 0, complained
    total = finished(plain)
    rng, kills = random.Random(jobs), 0
    for round_ in range(KILLS // 2):
        # Spread over the run: just before, while and just after a unit's file is written.
        units = finished(killed) + rng.randrange(1, 3)
        process = start(study, killed, jobs=jobs)
        kills += kill_at(process, killed, min(units, total), rng.random() * 0.1, round_ % 2 == 0)
    process = start(study, killed, jobs=jobs)
    _, complained = process.communicate(timeout=120)
    assert process.returncode == 0, complained
    assert kills >= KILLS // 2 - 2  # some may have come after the end
    assert timeless(killed) == timeless(plain)
    lines = (killed / "cells" / "log.jsonl").read_text().splitlines()
    assert set(Counter(json.loads(line)["key"] for line in lines).values()) == {1}
    assert not list((killed / "cells").glob("*/.*.*.*"))
