"""The repository itself: what must be in it and what must not."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|Users|work)/\w")
REGISTRY = re.compile("pypi" + r"\.org|python" + r"hosted|npm" + r"js\.org")


def _tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.splitlines()]


def test_no_tracked_file_names_a_path_of_a_machine_or_a_package_registry() -> None:
    for path in _tracked():
        if path.is_symlink() or not path.is_file() or path.suffix == ".png":
            continue
        text = path.read_text(encoding="utf-8")
        for pattern in (MACHINE_PATH, REGISTRY):
            found = pattern.search(text)
            assert found is None, f"{path.name}: {found}"


def test_everything_that_is_installed_for_a_test_run_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin) for pin in pins)
    assert "torch==2.13.0" in pins


def test_the_two_symlinks_are_tracked_as_symlinks() -> None:
    for name, target in (("attacks", "../attacks"), ("evaluation", "../evaluation")):
        link = ROOT / "gradguard" / name
        assert link.is_symlink()
        assert str(link.readlink()) == target


def test_the_map_in_architecture_names_every_module() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    for package in ("gradguard", "attacks", "evaluation"):
        for path in sorted((ROOT / package).rglob("*.py")):
            assert path.stem.startswith("__") or re.search(rf"\b{path.stem}\b", text), path.name
