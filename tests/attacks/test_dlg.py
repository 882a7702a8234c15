"""DLG, the reference that inverts gradients: deterministic, without side effects, and slow."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradguard.attacks import ADAPTIVE, DLG, PUBLISHED, REFERENCES, Knowledge, Observation
from tests.attacks.models import CLASSES, batches, cnn, gradient, knowledge, overlap, skewed

QUICK = DLG(2)


def messages(counts: np.ndarray, model: nn.Module | None = None) -> list[Observation]:
    return [seen for _, _, seen in batches(model or cnn(sigmoid=True), counts)]


def test_it_is_a_reference_and_not_among_the_published() -> None:
    assert DLG() in REFERENCES
    assert not set(REFERENCES) & {*PUBLISHED, *ADAPTIVE}


def test_label_of_a_single_example_is_read() -> None:
    """As in the paper, on a sigmoid network whose parameters are U(-0.5, 0.5)."""
    counts = np.eye(4, dtype=np.int64)[1:3]
    fitted = DLG(3).fit(knowledge(cnn(sigmoid=True), 1))
    assert overlap(fitted.infer(messages(counts)), counts) == 1.0


@pytest.mark.slow
def test_small_batches_are_read() -> None:
    """Measured: .94 of the labels; an even spread has .63."""
    counts = np.array([[2, 1, 0, 1], [0, 0, 4, 0], [0, 2, 2, 0], [3, 0, 0, 1]])
    fitted = DLG().fit(knowledge(cnn(sigmoid=True), 4))
    assert overlap(fitted.infer(messages(counts)), counts) > 0.8


def test_the_same_message_gives_the_same_answer_wherever_it_stands() -> None:
    seen = messages(skewed(2, 4))
    fitted = QUICK.fit(knowledge(cnn(sigmoid=True), 4))
    both = fitted.infer(seen)
    assert torch.equal(both, QUICK.fit(knowledge(cnn(sigmoid=True), 4)).infer(seen))
    assert torch.equal(both[1:], fitted.infer(seen[1:]))


def test_another_seed_starts_from_other_dummies() -> None:
    seen = messages(skewed(4, 16))
    one = DLG(1)
    first, second = (one.fit(knowledge(cnn(), seed=s)).infer(seen) for s in (1, 2))
    assert not torch.equal(first, second)


class Noisy(nn.Module):
    """A network with everything that changes while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Sigmoid())
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.head(self.drop(self.body(inputs)))
        return out


def test_random_state_and_model_are_left_as_they_were() -> None:
    model = Noisy().eval()
    seen = messages(skewed(1, 4), model)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.random.get_rng_state()
    fitted = QUICK.fit(knowledge(model, 4))
    inside = {n: t.clone() for n, t in fitted.model.state_dict().items()}
    with torch.no_grad():  # nor does it matter whether gradients are enabled
        assert fitted.infer(seen).sum() == 4
    assert torch.equal(torch.random.get_rng_state(), expected)
    assert not model.training
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(torch.equal(t, inside[n]) for n, t in fitted.model.state_dict().items())


def test_observations_are_not_modified() -> None:
    [seen] = messages(skewed(1, 4))
    before = {n: t.clone() for n, t in seen.update.items()}
    QUICK.fit(knowledge(cnn(sigmoid=True), 4)).infer([seen])
    assert all(torch.equal(t, before[n]) for n, t in seen.update.items())


@pytest.mark.parametrize("change", [torch.zeros_like, Tensor.half, lambda t: 1e20 * t])
def test_strange_messages_are_answered(change: type[Tensor]) -> None:
    [seen] = messages(skewed(1, 4))
    strange = replace(seen, update={n: change(t) for n, t in seen.update.items()})
    counts = QUICK.fit(knowledge(cnn(sigmoid=True), 4)).infer([strange])
    assert counts.dtype == torch.int64
    assert counts.sum() == 4
    assert (counts >= 0).all()


def test_several_steps_are_inverted_as_their_mean_gradient() -> None:
    [seen] = messages(skewed(1, 4))
    several = {n: t * (4 * 0.125) for n, t in seen.update.items()}
    fitted = QUICK.fit(knowledge(cnn(sigmoid=True), 4))
    local = replace(seen, update=several, local_steps=4, learning_rate=0.125)
    assert torch.equal(fitted.infer([seen]), fitted.infer([local]))


def test_part_of_a_message_is_matched() -> None:
    [seen] = messages(np.array([[0, 0, 1, 0]]))
    head = {n: t for n, t in seen.update.items() if n.startswith("5.")}
    fitted = DLG(5).fit(knowledge(cnn(sigmoid=True), 1))
    assert fitted.infer([replace(seen, update=head)]).tolist() == [[0, 0, 1, 0]]


def test_two_classes_do() -> None:
    model = cnn(classes=2, sigmoid=True)
    inputs, labels = torch.rand(1, 1, 8, 8), torch.tensor([1])
    seen = Observation(gradient(model, inputs, labels), 1, 2)
    fitted = DLG(5).fit(knowledge(model, 1, num_classes=2))
    assert fitted.infer([seen]).tolist() == [[0, 1]]


def test_needs_only_the_model_where_the_shape_is_given() -> None:
    shaped = DLG(1, input_shape=(1, 8, 8))
    assert shaped.needs == {"model", "num_classes"}
    assert DLG().needs == {"model", "num_classes", "auxiliary"}
    fitted = shaped.fit(Knowledge(model=cnn(), num_classes=CLASSES))
    assert fitted.infer(messages(skewed(1, 4), cnn())).sum() == 4


def test_unusable_input_is_refused() -> None:
    with pytest.raises(ValueError, match="iterations"):
        DLG(0)
    with pytest.raises(ValueError, match="4 rows in layer 'missing'"):
        DLG(head="missing").fit(knowledge(cnn()))
    fitted = QUICK.fit(knowledge(cnn()))
    [seen] = messages(skewed(1, 4))
    nan = {n: t * torch.nan for n, t in seen.update.items()}
    for update, words in ((nan, "finite"), ({"x": torch.ones(1)}, r"\['x'\]"), ({}, "parameters")):
        with pytest.raises(ValueError, match=words):
            fitted.infer([replace(seen, update=update)])
    with pytest.raises(ValueError, match="fitted for 4"):
        fitted.infer([replace(seen, num_classes=3)])
    with pytest.raises(ValueError, match="at least one observation"):
        fitted.infer([])
