from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradguard import Defense, Grads, State
from gradguard.attacks import ADAPTIVE, BASELINES, PUBLISHED
from gradguard.attacks.threat import FittedAttack, Knowledge, NotApplicableError, Observation
from gradguard.evaluation import (
    InterruptedStudyError,
    Report,
    Row,
    Study,
    UnusableInputError,
    evaluate,
    load_digits,
)
from gradguard.evaluation.attackers import attack_name
from gradguard.evaluation.models import mlp
from gradguard.evaluation.progress import Silent
from gradguard.evaluation.running.bench import Bench, Cell, prepare
from gradguard.evaluation.running.cell import attack_cell
from gradguard.evaluation.running.rows import worst_attack
from gradguard.evaluation.running.units import cells
from gradguard.evaluation.study import default_table
from gradguard.evaluation.training import train
from tests.evaluation.examples import STUDY, study_with

CELL = Cell("init", "skewed", 4)


def timeless(report: Report) -> list[Row]:
    return [replace(row, step_overhead=1.0) for row in report.rows]


@pytest.fixture(scope="module")
def small() -> Report:
    return evaluate(Study.from_dict(STUDY))


def test_rows_carry_intervals_around_their_values(small: Report) -> None:
    for row in small.rows:
        assert row.worst_ci[0] <= row.worst_asr <= row.worst_ci[1]
        assert row.advantage_ci[0] <= row.advantage <= row.advantage_ci[1]
        assert row.advantage == pytest.approx((row.worst_asr - row.blind_asr) / (1 - row.blind_asr))
        assert row.accuracy == pytest.approx(np.mean(row.accuracy_seeds))
        assert row.blind_asr == row.attacks["BestConstant"].asr
        assert row.worst_asr == row.attacks[row.worst_attack].asr
        assert set(row.attacks) == {"RandomGuess", "BestConstant", "LLG"}


def test_an_undefended_untrained_model_leaks(small: Report) -> None:
    assert small.rows[0].defense == "none"
    assert small.rows[0].advantage_ci[0] > 0.3


def test_the_report_says_how_much_lies_behind_it(small: Report) -> None:
    facts = small.provenance
    assert facts["batches_per_row"] == {"scored": 6, "calibration": 6, "simulated_per_seed": 0}
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["data"]["test"] + facts["data"]["client"] + facts["data"]["auxiliary"] == 1797


def test_the_same_study_and_seed_give_the_same_rows(small: Report) -> None:
    assert timeless(evaluate(Study.from_dict(STUDY))) == timeless(small)
    assert timeless(evaluate(Study.from_dict(study_with(seed=1)))) != timeless(small)


def test_fewer_models_may_be_attacked_than_are_trained() -> None:
    (row, _) = evaluate(Study.from_dict(study_with(attack={"seeds": 1, "trials": 5}))).rows
    assert len(row.accuracy_seeds) == 2


def test_cells_are_finished_one_after_another() -> None:
    study = Study.from_dict(
        study_with(attack={"stages": ["init", "trained"], "batch_sizes": [4, 8]})
    )
    assert [(c.stage, c.batch_size) for c in cells(study)] == [
        *(("init", 4), ("init", 8)),
        *(("trained", 4), ("trained", 8)),
    ]


def test_rounds_are_rows_of_their_own_over_the_same_batches(small: Report) -> None:
    rounds = {"rounds": [1, 5], "participation": 0.5}
    report = evaluate(Study.from_dict(study_with(attack=rounds)))
    assert [(row.defense, row.rounds) for row in report.rows] == [
        *(("none", 1), ("top-k", 1), ("none", 5), ("top-k", 5)),
    ]
    assert "Over several rounds" in report.provenance["method"]
    once, pooled = timeless(report)[:2], timeless(report)[2:]
    assert once == timeless(small)
    # These two send the same in every round.
    assert [replace(row, rounds=1) for row in pooled] == once
    assert Report.from_json(report.to_json()).rows == report.rows


def test_the_worst_attack_is_never_below_blind_on_calibration_batches() -> None:
    scores = {"BestConstant": np.full((2, 3), 0.4), "LLG": np.full((2, 3), 0.3)}
    assert worst_attack(scores) == "BestConstant"


class StopsAfter(Silent):
    """Interrupts as Ctrl-C would, after so many pieces of work."""

    def __init__(self, left: int) -> None:
        self.left = left

    def advance(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


def test_an_interruption_keeps_the_finished_rows(small: Report) -> None:
    # Per defence two training runs and a weighing; then for each seed both defences are attacked.
    with pytest.raises(InterruptedStudyError) as caught:
        evaluate(Study.from_dict(STUDY), progress=StopsAfter(8))
    report = caught.value.report
    assert not report.complete
    assert timeless(report) == timeless(small)[:1]


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


def spied(**sections: Any) -> tuple[Bench, Spy]:
    spy = Spy()
    bench = prepare(Study.from_dict(study_with(**sections)))
    return replace(bench, attacks={"BestConstant": spy}), spy


def test_the_attacker_is_shown_auxiliary_images_only() -> None:
    bench, spy = spied()
    attack_cell(bench, CELL, bench.study.defenses[0], Silent())
    images = load_digits().images
    auxiliary = spy.known[0].auxiliary
    assert auxiliary is not None
    assert torch.equal(auxiliary[0], images[torch.from_numpy(bench.parts.auxiliary)])
    assert not set(bench.parts.auxiliary) & set(bench.parts.client)
    assert spy.known[0].composition == "skewed"
    assert spy.known[0].batch_size == 4


def test_the_attacked_model_was_trained_on_no_attacked_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench, _ = spied()
    seen: list[torch.Tensor] = []

    def spy(model: Any, data: Any, test: Any, **rest: Any) -> Any:
        seen.append(data[0])
        return train(model, data, test, **rest)

    monkeypatch.setattr("gradguard.evaluation.running.bench.train", spy)
    bench.model("trained", 0)
    trained = {image.numpy().tobytes() for image in seen[0]}
    attacked = np.concatenate([bench.parts.calibration, bench.parts.scored])
    history = bench.part(bench.parts.history)[0]
    assert trained == {image.numpy().tobytes() for image in history}
    assert not set(bench.parts.history) & set(attacked)


def test_simulated_noise_is_not_the_victims_noise() -> None:
    noise = [{"name": "n", "transform": [{"AddGaussian": {"stddev": 1.0}}]}]
    bench, spy = spied(defense=noise)
    attack_cell(bench, CELL, bench.study.defenses[0], Silent())
    batch = bench.batches("calibration", CELL, 0)[0]
    client = spy.known[0].client
    assert client is not None
    mine, theirs = client(batch.inputs, batch.labels), spy.seen[0].update
    for name in mine:
        assert not torch.equal(mine[name], theirs[name])
    # Two messages differ by two independent noises of variance 1.
    spread = torch.cat([(mine[name] - theirs[name]).flatten() for name in mine]).var()
    assert 1.9 < spread < 2.1


def test_calibration_and_scored_batches_share_no_image() -> None:
    bench, _ = spied()
    calibration, scored = (
        {image.numpy().tobytes() for b in bench.batches(which, CELL, 0) for image in b.inputs}
        for which in ("calibration", "scored")
    )
    assert not calibration & scored


def test_the_trained_stage_attacks_the_model_trained_without_a_defence() -> None:
    bench, spy = spied(attack={"stages": ["trained"]})
    trained = Cell("trained", "skewed", 4)
    for defense in bench.study.defenses:
        attack_cell(bench, trained, defense, Silent())
    expected = nn.utils.parameters_to_vector(bench.undefended(0).model.parameters())
    fresh = nn.utils.parameters_to_vector(bench.fresh_model(0).parameters())
    first, _, other, _ = (known.model for known in spy.known)
    for model in (first, other):
        assert model is not None
        assert torch.equal(nn.utils.parameters_to_vector(model.parameters()), expected)
    assert not torch.equal(fresh, expected)


class Unmountable(Spy):
    def fit(self, knowledge: Knowledge) -> FittedAttack:
        raise NotApplicableError("needs a bias")


def test_an_attack_that_cannot_be_mounted_has_a_reason_and_no_score() -> None:
    bench, spy = spied()
    bench = replace(bench, attacks={"BestConstant": spy, "Other": Unmountable()})
    scores = attack_cell(bench, CELL, bench.study.defenses[0], Silent())
    assert scores.skipped == {"Other": "needs a bias"}
    assert set(scores.scored) == {"BestConstant"}


class Greedy(Spy):
    def infer(self, observations: Any) -> torch.Tensor:
        return super().infer(observations) + 1


def test_an_answer_of_more_labels_than_the_batch_is_refused() -> None:
    bench, _ = spied()
    bench = replace(bench, attacks={"Greedy": Greedy()})
    with pytest.raises(ValueError, match="Greedy must answer int64 counts"):
        attack_cell(bench, CELL, bench.study.defenses[0], Silent())


def test_data_and_model_can_be_given_in_python() -> None:
    def factory(shape: tuple[int, ...], classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))

    report = evaluate(Study.from_dict(STUDY), data=load_digits(), factory=factory)
    assert report.rows[0].dense_bytes == 4 * 650


@pytest.mark.slow
def test_several_processes_give_the_same_rows(small: Report) -> None:
    noise = {"name": "noise", "transform": [{"AddGaussian": {"stddev": 0.01}}]}
    attack = {"stages": ["init", "trained"], "rounds": [1, 4], "participation": 0.5}
    study = Study.from_dict(study_with(attack=attack, defense=[*STUDY["defense"], noise]))
    assert timeless(evaluate(study, jobs=2)) == timeless(evaluate(study, jobs=1))


def test_a_factory_that_no_other_process_can_import_is_refused() -> None:
    study = Study.from_dict(STUDY)
    with pytest.raises(UnusableInputError, match="cannot be sent to another process"):
        evaluate(study, factory=lambda shape, classes: mlp(shape, classes), jobs=2)


@pytest.mark.slow
def test_every_default_defence_meets_every_attack() -> None:
    table = default_table()
    table["training"] |= {"steps": 3, "seeds": 1}
    sizes = {"stages": ["init"], "trials": 4, "calibration": 4, "seeds": 1, "simulated": 40}
    table["attack"] |= sizes
    report = evaluate(Study.from_dict(table))
    assert len(report.rows) == 14
    attacks = [attack_name(attack) for attack in (*BASELINES, *PUBLISHED, *ADAPTIVE)]
    assert len(set(attacks)) == len(attacks)
    for row in report.rows:
        assert set(row.attacks) == set(attacks)
    assert json.loads(report.to_json())["provenance"]["batches_per_row"]["simulated_per_seed"] == 40


def test_a_head_without_bias_skips_the_attacks_that_need_one() -> None:
    def factory(shape: tuple[int, ...], classes: int) -> nn.Module:
        return nn.Sequential(
            *(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1)),
            nn.Linear(32, classes, bias=False),
        )

    study = study_with(attack={"attackers": ["LLG", "BiasCount"]})
    report = evaluate(Study.from_dict(study), factory=factory)
    assert set(report.rows[0].skipped) == {"BiasCount"}
    assert "BiasCount" not in report.rows[0].attacks


def with_dropout(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5)), nn.Linear(32, classes)
    )


def test_dropout_is_repeatable_and_does_not_depend_on_the_order_of_work() -> None:
    study = Study.from_dict(study_with(attack={"attackers": ["LLG", "LLGStar(random)", "LLGPlus"]}))
    first = evaluate(study, factory=with_dropout)
    torch.rand(1)  # another global state
    assert timeless(evaluate(study, factory=with_dropout)) == timeless(first)
    # Alone, the second defence meets no gradient that the first has left behind.
    alone = replace(study, defenses=study.defenses[1:])
    assert timeless(evaluate(alone, factory=with_dropout)) == timeless(first)[1:]


class FailsLater:
    """Works when it is tried out, and raises after some messages."""

    def __init__(self, after: int) -> None:
        self.left = after

    def init(self, params: Sequence[torch.Tensor]) -> State:
        return {}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        self.left -= 1
        if self.left < 0:
            raise KeyError("lost")
        return grads, state


def test_a_row_that_fails_says_why_and_the_others_are_made(small: Report) -> None:
    fails = Defense("fails", transform=FailsLater(12))
    study = Study.from_dict(STUDY)
    study = replace(study, defenses=(study.defenses[0], fails, study.defenses[1]))
    report = evaluate(study)
    assert timeless(report) == timeless(small)
    assert report.complete
    [failure] = report.failures
    assert (failure.defense, failure.stage, failure.batch_size) == ("fails", "init", 4)
    assert failure.why == "KeyError: 'lost'"
    assert Report.from_json(report.to_json()).failures == report.failures


def test_where_no_row_can_be_made_the_first_reason_is_raised() -> None:
    study = replace(Study.from_dict(STUDY), defenses=(Defense("f", transform=FailsLater(12)),))
    with pytest.raises(UnusableInputError, match="KeyError: 'lost'"):
        evaluate(study)


def test_a_layer_that_cannot_train_on_the_smallest_batch_is_refused_before_any_work() -> None:
    def factory(shape: tuple[int, ...], classes: int) -> nn.Module:
        return nn.Sequential(
            *(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32)), nn.Linear(32, classes)
        )

    study = Study.from_dict(study_with(attack={"batch_sizes": [4, 1]}))
    with pytest.raises(UnusableInputError, match="failed to train on a batch of 1"):
        prepare(study, factory=factory)
