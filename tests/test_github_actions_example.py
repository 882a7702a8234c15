"""The workflow of ``examples/github_actions``, run as far as it can be without GitHub.

Its ``run:`` lines are run in order by bash, as a runner does. Left out are the steps that are
actions (``uses:``) and the lines of ``pip install``: gradguard is installed already.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from gradguard.evaluation import Study

FOLDER = Path(__file__).parent.parent / "examples" / "github_actions"
WORKFLOW: dict[Any, Any] = yaml.safe_load((FOLDER / "leakage.yml").read_text(encoding="utf-8"))
STEPS: list[dict[str, Any]] = WORKFLOW["jobs"]["leakage"]["steps"]
JUDGES = next(i for i, step in enumerate(STEPS) if "gradguard gate" in step.get("run", ""))


def run_steps(
    steps: list[dict[str, Any]], folder: Path, **changes: str
) -> subprocess.CompletedProcess[str]:
    """The outcome of the first step that fails, or of the last."""
    told: dict[str, str] = WORKFLOW["env"] | changes
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    summary = {"GITHUB_STEP_SUMMARY": str(folder / "summary.md"), "PATH": path}
    done = subprocess.CompletedProcess[str]([], 0)
    for step in steps:
        lines = step.get("run", "").splitlines()
        script = "\n".join(line for line in lines if not line.startswith("pip install"))
        if script:
            done = subprocess.run(
                ["bash", "-e", "-c", script],
                cwd=folder,
                env=os.environ | summary | told,
                capture_output=True,
                text=True,
            )
            if done.returncode:
                break
    return done


def test_the_workflow_is_one_that_github_reads() -> None:
    # YAML 1.1 takes the key "on" for true, and GitHub does not.
    assert WORKFLOW[True] == "pull_request"
    assert WORKFLOW["permissions"] == {"contents": "read"}
    for step in STEPS:
        assert ("run" in step) != ("uses" in step)
        assert "@v" in step.get("uses", "@v")
    upload = next(step for step in STEPS if "upload-artifact" in step.get("uses", ""))
    assert upload["if"] == "always()"
    assert all(isinstance(value, str) for value in WORKFLOW["env"].values())


def test_the_study_has_the_defence_that_is_judged_and_one_that_leaks() -> None:
    names = [defense.name for defense in Study.from_toml(FOLDER / "study.toml").defenses]
    assert names == ["top-k 1 %", WORKFLOW["env"]["DEFENSE"]]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_gate_lets_a_holding_defence_pass_and_no_leaking_one(tmp_path: Path) -> None:
    shutil.copy(FOLDER / "study.toml", tmp_path)
    holds = run_steps(STEPS, tmp_path)
    assert holds.returncode == 0, holds.stderr + holds.stdout
    assert holds.stdout.startswith("::notice title=gradguard gate::")
    page = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert page.startswith("## gradguard report")
    assert f"### gradguard gate: {WORKFLOW['env']['DEFENSE']} holds" in page
    assert {path.name for path in (tmp_path / "results").iterdir()} >= {
        *("report.json", "report.html", "report.md")
    }
    # The study need not be run again to judge another of its defences.
    leaks = run_steps(STEPS[JUDGES:], tmp_path, DEFENSE="top-k 1 %")
    assert leaks.returncode == 1
    assert leaks.stdout.startswith("::error title=gradguard gate::")
    assert "fails: advantage up to 1.000" in leaks.stdout
    unknown = run_steps(STEPS[JUDGES:], tmp_path, DEFENSE="sum of 1600")
    assert unknown.returncode == 2
    assert "did you mean" in unknown.stdout
