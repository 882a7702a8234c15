"""What the README and the examples show is run, not believed."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from gradguard.evaluation import Study

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SAYS = {"socket_training": r"bytes in 200 rounds, [5-9]\d times less\naccuracy 0\.[89]"}


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_runs(example: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(example)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.search(SAYS.get(example.stem, r"\S"), done.stdout), done.stdout


def test_the_readmes_python_runs() -> None:
    blocks = _blocks("python")
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_the_readmes_studies_are_studies() -> None:
    first, second = (Study.from_dict(tomllib.loads(block)) for block in _blocks("toml"))
    assert [defense.name for defense in first.defenses] == ["none", "clip 1, noise 0.1"]
    assert second.client is not None
    assert second.attack.rounds == (1, 5, 20, 100)
    assert second.defenses[0].cohort == 16


def test_every_file_that_the_readme_links_to_is_there() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
