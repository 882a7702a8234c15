"""``gradguard audit`` through the real command line."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

import pytest
import tomli_w

from gradguard.evaluation.auditing.engine import AuditResult
from gradguard.evaluation.auditing.study import Audited, closing, to_json, weak
from tests.evaluation.auditing.test_engine import audit, small
from tests.evaluation.broken_pipelines import Correct, NoNoiseOnScalars
from tests.evaluation.examples import run, study_with, write_npz

DP = {"noise_multiplier": 1.0, "max_grad_norm": 1.0}
DEFENSES = [
    {"name": "none", "transform": []},
    {"name": "DP z=1", "transform": [], "dp": DP},
    {"name": "DP then sign", "transform": [{"Sign": {}}], "dp": DP},
]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(tomli_w.dumps(study_with(defense=DEFENSES)))
    return path


def test_every_dp_defence_is_audited_with_both_canaries(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("audit", study, "--draws", "200", "--out", "found.json") == 0
    said = capsys.readouterr()
    assert said.err == ""
    for shown in ("add-remove", "label-flip", "replace-one", "not refuted", "never prove"):
        assert shown in said.out
    assert "none: no DP, so there is no claim to audit." in said.out
    assert "No claim is refuted" in said.out
    found = json.loads(Path("found.json").read_text())
    assert found["schema"] == 1
    assert found["without_claim"] == ["none"]
    assert [(one["defense"], one["canary"], one["claim_mu"]) for one in found["audits"]] == [
        (name, canary, mu)
        for name in ("DP z=1", "DP then sign")
        for canary, mu in (("add-remove", 1.0), ("label-flip", 2.0))
    ]
    assert all(one["alpha"] == pytest.approx(0.05 / 4) for one in found["audits"])


def test_options_choose_the_defence_the_data_the_model_and_the_seed(
    study: Path, tmp_path: Path
) -> None:
    Path("own_audited_model.py").write_text(
        "from torch import nn\n"
        "def make(shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
    )
    options: list[str | Path] = [
        "--data",
        write_npz(tmp_path / "mine.npz"),
        "--model",
        "own_audited_model:make",
    ]
    options += ["--defense", "DP z=1", "--draws", "400"]
    files: list[str] = []
    for seed in ("7", "7", "8"):
        assert run("audit", study, *options, "--seed", seed, "--out", f"{len(files)}.json") == 0
        files.append(Path(f"{len(files)}.json").read_text())
    assert files[0] == files[1] != files[2]
    assert {one["defense"] for one in json.loads(files[0])["audits"]} == {"DP z=1"}
    # The canary is a strong one: most of the claim is seen with few draws.
    flip = json.loads(files[0])["audits"][1]
    assert flip["mu_lower"] > 1.0


BAD: dict[str, tuple[list[str], str]] = {
    "unknown defence": (["--defense", "DP z=2"], "did you mean 'DP z=1'"),
    "no claim": (["--defense", "none"], "none has a claim to audit"),
    "too few draws": (["--draws", "10"], "--draws must be at least 100"),
    "alpha of 1": (["--alpha", "1"], "--alpha must be"),
    "alpha not a number": (["--alpha", "nan"], "--alpha must be"),
    "out is a folder": (["--out", "."], "is a folder"),
    "out too long a name": (["--out", 250 * "a"], "cannot be a file"),
    "out in no folder": (["--out", "none/found.json"], "no such folder"),
    "missing data": (["--data", "none.npz"], "no such file"),
    "negative seed": (["--seed", "-1"], "seed must be"),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_bad_input_is_one_line_and_exit_code_2(
    case: str, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, fragment = BAD[case]
    assert run("audit", study, *arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert fragment in said.err
    assert list(Path.cwd().iterdir()) == []


def test_an_audit_that_cannot_be_kept_is_shown_and_exit_code_2(
    study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("gradguard.evaluation.auditing.study.write_atomically", full)
    arguments = ("--draws", "100", "--defense", "DP z=1", "--out", "found.json")
    assert run("audit", study, *arguments) == 2
    said = capsys.readouterr()
    assert "No claim is refuted" in said.out
    assert said.err == (
        "gradguard: found.json: the audit could not be written (No space left on device)\n"
    )


def rows() -> dict[str, AuditResult]:
    return {
        "right": audit(small(Correct), 1.0),
        "broken": audit(small(NoNoiseOnScalars), 1.0),
        "beyond": audit(small(Correct, 0.05), 0.05),
    }


def test_the_closing_sentence_names_what_is_refuted() -> None:
    found = [Audited(name, result) for name, result in rows().items()]
    assert "The claim of broken is refuted" in closing(found, alpha=0.05)
    assert "No claim is refuted by 1 audits" in closing(found[:1], alpha=0.05)
    # A claim that is too large for so few draws is said to be, not called confirmed.
    (line,) = weak(found)
    assert line.startswith("beyond, add-remove")
    assert json.loads(to_json(found, [], alpha=0.05))["audits"][1]["flagged"] is True


MIXING_MODEL = """
from torch import nn
class Mixing(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.head = nn.Linear(64, classes)
    def forward(self, images):
        flat = images.flatten(1)
        return self.head(flat - 10 * flat.mean(dim=0))
def make(shape, classes):
    return Mixing(classes)
"""


def test_a_model_that_mixes_examples_breaks_the_claim_and_is_exit_code_1(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Clipping each example bounds nothing where one example changes the gradients of all others.
    Path("mixing_model.py").write_text(MIXING_MODEL)
    options: list[str] = ["--defense", "DP z=1", "--draws", "1000", "--out", "found.json"]
    assert run("audit", study, *options, "--model", "mixing_model:make") == 1
    said = capsys.readouterr().out
    assert "REFUTED" in said
    assert "The claim of DP z=1 is refuted" in said
    assert json.loads(Path("found.json").read_text())["audits"][0]["flagged"] is True
