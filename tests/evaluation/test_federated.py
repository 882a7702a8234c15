"""Studies of clients that train locally."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from gradguard import Defense, LocalTraining
from gradguard.attacks.threat import FittedAttack, Knowledge, Observation
from gradguard.evaluation import Study, UnusableInputError, evaluate, load_digits
from gradguard.evaluation.federated import round_overhead, train_federated
from gradguard.evaluation.models import build_model, mlp
from gradguard.evaluation.progress import Silent
from gradguard.evaluation.running.bench import Cell, prepare
from gradguard.evaluation.running.cell import attack_cell
from gradguard.evaluation.running.memo import GradientMemo
from gradguard.evaluation.specs import TrainingSpec
from tests.evaluation.examples import NONE, STUDY, study_with

LOCAL = {"epochs": 2, "learning_rate": 0.2, "batch_size": 3}
DIGITS = load_digits()


def model() -> nn.Module:
    return build_model(mlp, input_shape=(1, 8, 8), num_classes=10, seed=0)


def test_a_client_table_survives_a_round_trip() -> None:
    study = Study.from_dict(study_with(client=LOCAL))
    assert study.client == LocalTraining(epochs=2, learning_rate=0.2, batch_size=3)
    assert Study.from_dict(study.to_dict()) == study
    assert "client" not in Study.from_dict(STUDY).to_dict()


@pytest.mark.parametrize(
    ("client", "said"),
    [
        ({"epochs": 0, "learning_rate": 0.1}, r"\[client\]: epochs must be a whole number"),
        ({"epoch": 1, "learning_rate": 0.1}, r"\[client\]: 'epoch'; did you mean 'epochs'"),
        ({"learning_rate": 0.1}, r"\[client\] needs epochs"),
        ({"epochs": 1}, r"\[client\] needs learning_rate"),
        ({"epochs": 1, "learning_rate": -1}, r"\[client\]: learning_rate must be"),
        (3, r"\[client\] must be a table"),
    ],
)
def test_an_unusable_client_table_is_refused_in_one_line(client: Any, said: str) -> None:
    with pytest.raises(UnusableInputError, match=said) as caught:
        Study.from_dict(study_with() | {"client": client})
    assert "\n" not in str(caught.value)


def test_dp_sgd_and_local_training_are_refused_together() -> None:
    private = {"name": "DP", "dp": {"noise_multiplier": 1.0, "max_grad_norm": 1.0}}
    with pytest.raises(UnusableInputError, match=r"defence 'DP' has dp.*\[client\]"):
        Study.from_dict(study_with(client=LOCAL, defense=[private]))


def test_a_model_with_running_statistics_is_refused() -> None:
    def factory(shape: tuple[int, ...], classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, classes))

    study = Study.from_dict(study_with(client=LOCAL | {"batch_size": 4}))
    with pytest.raises(UnusableInputError, match=r"running statistic.*does not send"):
        prepare(study, factory=factory)


def test_local_training_that_diverges_is_refused_before_any_work() -> None:
    with pytest.raises(UnusableInputError, match=r"lower client\.learning_rate"):
        prepare(Study.from_dict(study_with(client=LOCAL | {"learning_rate": 1e38})))


class Spy:
    """An attack that keeps what it was told and shown."""

    needs: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.known: list[Knowledge] = []
        self.seen: list[Observation] = []

    def fit(self, knowledge: Knowledge) -> FittedAttack:
        self.known.append(knowledge)
        return self

    def infer(self, observations: Any) -> torch.Tensor:
        self.seen += observations
        counts = torch.zeros(len(observations), 10, dtype=torch.int64)
        counts[:, 0] = observations[0].batch_size
        return counts


@pytest.mark.parametrize(
    ("local", "told"),
    [
        (LOCAL, (4, 0.2)),
        (LOCAL | {"momentum": 0.5}, (4, 0.2 * (1 + 1.5 + 1.75 + 1.875) / 4)),
        ({"epochs": 3, "learning_rate": 0.1, "optimizer": "adam"}, (3, None)),
    ],
)
def test_the_attacker_is_told_the_steps_and_the_effective_rate(
    local: dict[str, Any], told: tuple[int, float | None]
) -> None:
    spy = Spy()
    bench = prepare(Study.from_dict(study_with(client=local)))
    bench = replace(bench, attacks={"BestConstant": spy})
    attack_cell(bench, Cell("init", "skewed", 4), bench.study.defenses[0], Silent())
    known, seen = spy.known[0], spy.seen[0]
    assert (known.local_steps, seen.local_steps) == (told[0], told[0])
    assert known.learning_rate == seen.learning_rate
    assert known.learning_rate == (None if told[1] is None else pytest.approx(told[1]))
    # What it rehearses is what it is shown: a change, and not a gradient.
    batch = bench.batches("calibration", Cell("init", "skewed", 4), 0)[0]
    assert known.client is not None
    rehearsed = known.client(batch.inputs, batch.labels)
    for name, part in rehearsed.items():
        assert torch.equal(part, seen.update[name])


def test_the_memo_tells_kinds_of_local_training_apart() -> None:
    memo = GradientMemo(2**20)
    inputs, labels = DIGITS.images[:6], DIGITS.labels[:6]
    one, two = (LocalTraining(epochs=e, learning_rate=0.1) for e in (1, 2))
    for training in (None, one, two, one):
        memo.gradients(NONE.client(model(), training=training), inputs, labels)
    assert memo.backward_passes == 3


def test_one_local_step_trains_as_gradients_do() -> None:
    spec = TrainingSpec(steps=5, batch_size=8, learning_rate=0.1, momentum=0)
    data = (DIGITS.images[:200], DIGITS.labels[:200])
    local = LocalTraining(epochs=1, learning_rate=0.1)
    outcomes = [
        train_federated(model(), data, data, spec=spec, seed=1, defense=NONE, training=training)
        for training in (None, local)
    ]
    gradients, changes = (
        nn.utils.parameters_to_vector(outcome.model.parameters()) for outcome in outcomes
    )
    torch.testing.assert_close(gradients, changes, rtol=1e-4, atol=1e-6)


def test_more_local_epochs_move_the_model_further() -> None:
    spec = TrainingSpec(steps=30, batch_size=32)
    data = (DIGITS.images[:1000], DIGITS.labels[:1000])
    accuracies = [
        train_federated(
            *(model(), data, data),
            spec=spec,
            seed=1,
            defense=NONE,
            training=LocalTraining(epochs=epochs, learning_rate=0.05, batch_size=8),
        ).accuracy
        for epochs in (1, 5)
    ]
    assert accuracies[1] > accuracies[0] > 0.2


def test_the_overhead_of_a_round_is_a_ratio_of_times() -> None:
    spec = TrainingSpec(batch_size=16)
    found = round_overhead(
        *(model(), (DIGITS.images, DIGITS.labels)),
        spec=spec,
        defense=Defense("none", transform=[]),
        training=LocalTraining(epochs=2, learning_rate=0.1),
    )
    assert 0 < found < 100  # a busy machine times what it likes


def test_a_study_of_local_training_reports_a_leak() -> None:
    study = Study.from_dict(study_with(client=LOCAL, attack={"trials": 30}))
    first = evaluate(study)
    assert first.rows[0].advantage_ci[0] > 0.1
    assert first.study["client"] == LOCAL | {"optimizer": "sgd", "momentum": 0.0, "decay": 1.0}
    assert "Clients train locally" in first.provenance["method"]
    again = evaluate(Study.from_dict(first.study))
    assert [replace(row, step_overhead=1.0) for row in again.rows] == [
        replace(row, step_overhead=1.0) for row in first.rows
    ]


@pytest.mark.slow
def test_several_processes_give_the_same_rows() -> None:
    defenses = [
        {"name": "none", "transform": []},
        {"name": "noise", "transform": [{"AddGaussian": {"stddev": 0.01}}], "cohort": 4},
    ]
    attack = {"rounds": [1, 3], "participation": 0.7}
    study = Study.from_dict(study_with(client=LOCAL, defense=defenses, attack=attack))
    reports = [evaluate(study, jobs=jobs) for jobs in (1, 2)]
    one, two = ([replace(row, step_overhead=1.0) for row in r.rows] for r in reports)
    assert one == two
