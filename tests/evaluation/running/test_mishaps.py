"""What may befall a run: dying workers, a full disk, models that diverge, scripts of one file."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from gradguard import Defense, Grads, State
from gradguard.evaluation import Study, UnusableInputError, evaluate
from gradguard.evaluation.output import write_atomically
from gradguard.evaluation.running import assemble
from gradguard.evaluation.running import store as stores
from gradguard.evaluation.running.bench import DIVERGES, prepare
from gradguard.evaluation.running.store import LENT, LOG, Store, StoreError
from gradguard.evaluation.training import train
from tests.evaluation.examples import STUDY, study_with
from tests.evaluation.test_cli import GRADGUARD, write_study


def logged(store: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (store / LOG).read_text().splitlines()]


class Dies:
    """Ends its process, as the system does where memory runs out."""

    def __init__(self, parent: int) -> None:
        self.parent = parent

    def init(self, params: Sequence[Tensor]) -> State:
        return {}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        if os.getpid() != self.parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return grads, state


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:A worker stopped:UserWarning")
def test_a_worker_that_dies_again_fails_its_own_rows_and_the_others_are_made(
    tmp_path: Path,
) -> None:
    study = Study.from_dict(study_with(training={"seeds": 1}))
    expected = evaluate(study)
    dies = Defense("dies", transform=Dies(os.getpid()))
    first = replace(study, defenses=(dies, *study.defenses))
    report = evaluate(first, store=tmp_path, jobs=2)
    assert [replace(row, step_overhead=1.0) for row in report.rows] == [
        replace(row, step_overhead=1.0) for row in expected.rows
    ]
    assert [failure.defense for failure in report.failures] == ["dies"]
    assert "memory" in report.failures[0].why
    assert not list(tmp_path.glob("*/*.begun"))


SCRIPT = """
from dataclasses import dataclass
from torch import nn
from gradguard import Defense
from gradguard.evaluation import Study, evaluate
from tests.evaluation.examples import STUDY
from dataclasses import replace

@dataclass(frozen=True)
class Own:
    def init(self, params):
        return {}
    def update(self, grads, state):
        return grads, state

def factory(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))

if __name__ == "__main__":
    study = Study.from_dict(STUDY)
    study = replace(study, defenses=(*study.defenses, Defense("own", transform=Own())))
    print([row.defense for row in evaluate(study, factory=factory, jobs=2).rows])
"""


@pytest.mark.slow
def test_a_script_may_hold_its_own_model_and_transform(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    assert done.stdout.strip() == "['none', 'top-k', 'own']", done.stderr


def test_a_full_disk_ends_the_run_and_what_was_finished_is_not_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, left = Study.from_dict(STUDY), [4]

    def fills(path: Path, content: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_atomically(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(stores, "write_atomically", fills)
        with pytest.raises(UnusableInputError, match=r"No space left on device.*--resume"):
            evaluate(study, store=tmp_path)
    assert len(logged(tmp_path)) == 4
    assert len(evaluate(study, store=tmp_path, resume=True).rows) == 2
    keys = [line["key"] for line in logged(tmp_path)]
    assert len(keys) == len(set(keys)) == 10


def test_a_log_that_cannot_be_written_is_a_full_disk_too(tmp_path: Path) -> None:
    (tmp_path / LOG).mkdir()
    with pytest.raises(StoreError, match="cannot be written any more"):
        Store(tmp_path).log(unit="a")


def test_images_are_lent_to_other_processes_and_not_left_behind(tmp_path: Path) -> None:
    bench, store = prepare(Study.from_dict(STUDY)), Store(tmp_path)
    with store.lent(bench.data.images, bench.data.labels) as path:
        assert path.exists()
    assert not path.exists()
    # A killed run leaves them to the next one.
    (tmp_path / LENT.format(1)).write_bytes(b"private")
    with store.opened():
        assert not (tmp_path / LENT.format(1)).exists()


def test_a_model_that_diverges_is_trained_once_for_all_that_attack_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainings = []

    def counted(*arguments: Any, **options: Any) -> Any:
        trainings.append(options["seed"])
        return train(*arguments, **options)

    monkeypatch.setattr("gradguard.evaluation.running.bench.train", counted)
    table = study_with(attack={"stages": ["init", "trained"]}, training={"learning_rate": 1e20})
    report = evaluate(Study.from_dict(table))
    assert [row.stage for row in report.rows] == ["init", "init"]
    assert [(failure.stage, failure.why) for failure in report.failures] == [
        ("trained", DIVERGES)
    ] * 2
    assert len(trainings) == len(set(trainings)) == 2


def test_a_row_whose_certificate_cannot_be_computed_is_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def beyond(bench: Any, cell: Any, defense: Defense) -> dict[str, Any]:
        if defense.name == "top-k":
            raise OverflowError("beyond the accountant")
        return {"epsilon": None, "delta": None, "certificate": None}

    monkeypatch.setattr(assemble, "guarantees", beyond)
    report = evaluate(Study.from_dict(STUDY))
    assert [row.defense for row in report.rows] == ["none"]
    assert [failure.why for failure in report.failures] == ["OverflowError: beyond the accountant"]


@pytest.mark.slow
def test_sigterm_to_a_run_on_ray_keeps_what_was_finished(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    many = [f"dirichlet:{i}" for i in range(1, 200)]
    study, out = write_study(tmp_path, attack={"compositions": many}), tmp_path / "out"
    command = [GRADGUARD, "evaluate", str(study), "--out", str(out), "--jobs", "2"]
    with subprocess.Popen(
        [*command, "--backend", "ray"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:
        log = out / "cells" / LOG
        while process.poll() is None and not (log.exists() and log.stat().st_size > 4_000):
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        said, complained = process.communicate(timeout=60)
    assert process.returncode == 130, complained
    assert "--resume" in complained
    assert (out / "report.json").exists(), said
