"""What is evaluated is what is deployed: real Flower, recorded, attacked, and compared."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w

from gradguard import Defense, KeepTopK
from gradguard.evaluation import evaluate
from gradguard.evaluation.observed.result import read_observed
from gradguard.updates.recording import read_recording
from tests.evaluation.observed.federation import study_of
from tests.integrations.flower.engines import example_module

APP = Path(__file__).parent / "observed_app"
GRADGUARD = Path(sys.executable).parent / "gradguard"
# So few that not all is read: a rate of 1 would agree with much.
TOP_K = Defense("top-k 0.05 %", transform=KeepTopK(0.0005))
CLIENTS, ROUNDS = 10, 6

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study, and what the server of a real run of it has seen."""
    there = tmp_path_factory.mktemp("observed")
    (there / "study.toml").write_text(tomli_w.dumps(study_of(TOP_K).to_dict()))
    with example_module("engine").superlink("--simulation") as link:
        said = link.run(
            APP,
            clients=CLIENTS,
            wait_for=CLIENTS,
            num_server_rounds=ROUNDS,
            study=str(there / "study.toml"),
            folder=str(there / "seen"),
            gradguard_defense=TOP_K.to_json(),
        )
    assert (there / "seen" / "index.json").exists(), said
    return there


def test_every_message_of_a_real_run_is_recorded_with_its_truth(folder: Path) -> None:
    recording = read_recording(folder / "seen")
    messages = [message for round_ in recording.rounds for message in round_.messages]
    assert len(messages) == CLIENTS * ROUNDS
    assert all(message.counts is not None and sum(message.counts) == 8 for message in messages)
    assert not any(round_.refused for round_ in recording.rounds)


def test_real_traffic_leaks_what_the_direct_evaluation_says(folder: Path) -> None:
    done = subprocess.run(
        [GRADGUARD, "evaluate", "study.toml", "--observed", "seen", "--out", "out"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (found,) = (
        row for row in read_observed(folder / "out" / "observed.json").rows if row.view == "all"
    )
    (direct,) = evaluate(study_of(TOP_K)).rows
    assert found.messages == CLIENTS * ROUNDS
    assert not found.alarming
    low, high = found.worst.ci
    least, most = direct.attacks[direct.worst_attack].ci
    assert low <= most
    assert least <= high
    # And it is no coincidence of two wide intervals.
    assert high - low < 0.25
    assert most < 1
    assert found.verdict == "leaks"
    assert json.loads((folder / "out" / "observed.json").read_text())["messages"] == 60
