from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from gradguard import DPSGD, Defense
from gradguard.evaluation import Study, TrainingSpec, UnusableInputError
from gradguard.evaluation.progress import Silent
from gradguard.evaluation.running.bench import Bench, Cell, prepare
from gradguard.evaluation.running.cell import attack_cell
from gradguard.evaluation.training import loader, train
from tests.evaluation.examples import NONE, study_with
from tests.evaluation.test_evaluate import Spy

EPSILON = 0.4
CELL = Cell("init", "skewed", 4)


def smoothed(defense: Defense) -> tuple[Bench, Spy]:
    """A bench of a study with smoothed labels, and an attack that keeps what it sees."""
    study = Study.from_dict(study_with(training={"label_smoothing": EPSILON}))
    spy = Spy()
    bench = prepare(replace(study, defenses=(defense,)))
    return replace(bench, attacks={"BestConstant": spy}), spy


def test_the_attacked_client_uses_it_and_so_does_the_attackers_copy_of_the_client() -> None:
    bench, spy = smoothed(NONE)
    attack_cell(bench, CELL, NONE, Silent())
    batch, model = bench.batches("calibration", CELL, 0)[0], bench.fresh_model(0).train()
    loss = cross_entropy(model(batch.inputs), batch.labels, label_smoothing=EPSILON)
    expected = torch.autograd.grad(loss, list(model.parameters()))
    client = spy.known[0].client
    assert client is not None
    for sent in (spy.seen[0].update, client(batch.inputs, batch.labels)):
        for found, gradient in zip(sent.values(), expected, strict=True):
            torch.testing.assert_close(found, gradient)


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_a_private_client_uses_it(mode: str) -> None:
    # So little noise and so wide a clip that the message is the gradient.
    defense = Defense("dp", transform=[], dp=DPSGD(1e-9, 1e3, mode=mode))
    bench, spy = smoothed(defense)
    attack_cell(bench, CELL, defense, Silent())
    batch, model = bench.batches("calibration", CELL, 0)[0], bench.fresh_model(0).train()
    loss = cross_entropy(model(batch.inputs), batch.labels, label_smoothing=EPSILON)
    expected = torch.autograd.grad(loss, list(model.parameters()))
    for found, gradient in zip(spy.seen[0].update.values(), expected, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_a_private_training_is_given_it(mode: str) -> None:
    bench, _ = smoothed(NONE)
    images = bench.part(bench.parts.client)
    defense = Defense("dp", transform=[], dp=DPSGD(1.0, 1.0, mode=mode))
    model = bench.fresh_model(0)
    attached = defense.attach(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        loader(*images, batch_size=16, seed=0),
        criterion=bench.study.training.criterion,
    )
    criterion = attached.criterion  # type: ignore[union-attr]  # with dp there is one
    found = getattr(criterion, "criterion", criterion)
    assert isinstance(found, nn.CrossEntropyLoss)
    assert found.label_smoothing == EPSILON


def test_training_uses_it_with_a_defence_and_without() -> None:
    bench, _ = smoothed(NONE)
    images, test = bench.part(bench.parts.client), bench.part(bench.parts.test)
    plain, smooth = TrainingSpec(steps=3), TrainingSpec(steps=3, label_smoothing=EPSILON)

    def weights(spec: TrainingSpec, defense: Defense | None) -> torch.Tensor:
        model = train(bench.fresh_model(0), images, test, spec=spec, seed=0, defense=defense).model
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    for defense in (None, NONE):
        assert not torch.equal(weights(plain, defense), weights(smooth, defense))
    assert torch.equal(weights(smooth, None), weights(smooth, NONE))


def test_no_smoothing_is_plain_cross_entropy() -> None:
    outputs, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    assert torch.equal(TrainingSpec().criterion(outputs, labels), cross_entropy(outputs, labels))


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan"), True, "0.1"])
def test_a_share_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(UnusableInputError, match=r"training\.label_smoothing must be a number"):
        Study.from_dict(study_with(training={"label_smoothing": value}))
