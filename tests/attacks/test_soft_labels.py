"""Label smoothing and mixup are not defences: their soft labels, and the counts behind them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gradguard.attacks import LLG, BiasCount, Knowledge, NotApplicableError, Observation, SoftLabels
from gradguard.attacks.soft_labels import implausibility, unsmoothed
from tests.attacks import mnist
from tests.attacks.local_training import cifar, draw, trained
from tests.attacks.models import (
    CLASSES,
    FlatModel,
    batches,
    cnn,
    data,
    gradient,
    knowledge,
    overlap,
    skewed,
)


def one_hot(labels: Tensor, classes: int = CLASSES) -> Tensor:
    return nn.functional.one_hot(labels, classes).float()


def smooth(labels: Tensor, smoothing: float, classes: int = CLASSES) -> Tensor:
    return (1 - smoothing) * one_hot(labels, classes) + smoothing / classes


def smoothed_batches(
    model: nn.Module, counts: np.ndarray, smoothing: float
) -> list[tuple[Tensor, Tensor, Observation]]:
    out = []
    for inputs, labels, seen in batches(model, counts):
        target = smooth(labels, smoothing).to(inputs.dtype)
        out.append((inputs, labels, replace(seen, update=gradient(model, inputs, target))))
    return out


def mixed(
    inputs: Tensor, labels: Tensor, share: float, rng: torch.Generator, classes: int = CLASSES
) -> tuple[Tensor, Tensor]:
    """Mixup of a batch with a permutation of itself, as it is published."""
    other = torch.randperm(len(inputs), generator=rng)
    targets = one_hot(labels, classes)
    return (
        share * inputs + (1 - share) * inputs[other],
        share * targets + (1 - share) * targets[other],
    )


SOFT = {
    "hard": torch.tensor([[0.0, 1.0, 0.0, 0.0]]),
    "smoothed": torch.tensor([[0.05, 0.85, 0.05, 0.05]]),
    "mixed": torch.tensor([[0.7, 0.0, 0.3, 0.0]]),
}


@pytest.mark.parametrize("name", SOFT)
@pytest.mark.parametrize("bias", [True, False])
def test_soft_label_of_a_single_example_is_recovered(name: str, bias: bool) -> None:
    """Exactly with a bias, and without one by the scalar that makes it plausible."""
    model = trained(cnn(bias=bias), *data(400, seed=2), 20).double()
    fitted = SoftLabels().fit(knowledge(model, 1, auxiliary=(data(80)[0].double(), data(80)[1])))
    soft = SOFT[name].double()
    for row in data(6, seed=4)[0].double():
        seen = Observation(gradient(model, row[None], soft), 1, CLASSES)
        found = fitted.soft_labels([seen])
        np.testing.assert_allclose(found, soft.numpy(), atol=1e-7 if bias else 1e-3)
        assert fitted.infer([seen])[0].argmax() == soft.argmax()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.2, 0.4])
@pytest.mark.parametrize("size", [2, 7, 40])
def test_exact_given_the_smoothing_and_the_batchs_own_mean_confidence(
    smoothing: float, size: int
) -> None:
    model = trained(cnn(), *data(400, seed=2), 20).double()
    counts = np.random.default_rng(size).multinomial(size, [0.6, 0.3, 0.1, 0.0], size=3)
    for inputs, labels, seen in smoothed_batches(model, counts, smoothing):
        known = knowledge(model, size, auxiliary=(inputs, labels))
        found = SoftLabels(smoothing).fit(known).infer([seen])[0].tolist()
        assert found == torch.bincount(labels, minlength=CLASSES).tolist()
        # Estimated, the smoothing is right too: the whole numbers give it away.
        assert SoftLabels().fit(known).infer([seen])[0].tolist() == found


def test_counts_from_the_wrong_smoothing_are_wrong() -> None:
    counts = np.array([[30, 10, 0, 0]])
    [(inputs, labels, seen)] = smoothed_batches(cnn(), counts, 0.2)
    known = knowledge(cnn(), 40, auxiliary=(inputs, labels))
    assert overlap(SoftLabels(0.0).fit(known).infer([seen]), counts) < 0.95
    assert overlap(SoftLabels(0.2).fit(known).infer([seen]), counts) == 1.0


@given(st.floats(0, 0.9), st.integers(1, 50))
def test_smoothing_is_undone(smoothing: float, size: int) -> None:
    counts = np.random.default_rng(size).multinomial(size, np.full(5, 0.2))
    label = (1 - smoothing) * counts / size + smoothing / 5
    np.testing.assert_allclose(unsmoothed(label, size, smoothing), counts, atol=1e-9)


def test_smoothing_of_hard_labels_is_not_imagined() -> None:
    counts = skewed(30)
    seen = [o for _, _, o in batches(cnn(), counts)]
    known = knowledge(cnn())
    hard, estimated = (SoftLabels(eps).fit(known).infer(seen) for eps in (0.0, None))
    assert torch.equal(hard, estimated)


def test_mixup_within_the_batch_leaves_the_counts_as_they_are() -> None:
    rng = torch.Generator().manual_seed(0)
    counts, seen = skewed(30), []
    for inputs, labels, one in batches(cnn(), counts):
        pair = mixed(inputs, labels, float(torch.rand((), generator=rng)), rng)
        seen.append(replace(one, update=gradient(cnn(), *pair)))
    for attack in (SoftLabels(), BiasCount()):
        assert overlap(attack.fit(knowledge(cnn())).infer(seen), counts) > 0.97


@pytest.mark.parametrize("smoothing", [0.1, 0.2])
def test_row_sums_do_where_there_is_no_bias(smoothing: float) -> None:
    counts = skewed(20)
    model = cnn(bias=False)
    seen = [o for _, _, o in smoothed_batches(model, counts, smoothing)]
    assert overlap(SoftLabels(smoothing).fit(knowledge(model)).infer(seen), counts) > 0.97


def test_features_that_sum_to_zero_without_a_bias_are_not_applicable() -> None:
    zeros = torch.zeros(4, 1, 8, 8), torch.arange(4)
    with pytest.raises(NotApplicableError, match="sum to zero"):
        SoftLabels().fit(knowledge(FlatModel(bias=False), auxiliary=zeros))
    SoftLabels().fit(knowledge(FlatModel(), auxiliary=zeros))


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_smoothing_out_of_range_is_refused(smoothing: float) -> None:
    with pytest.raises(ValueError, match="smoothing"):
        SoftLabels(smoothing)


def test_other_number_of_classes_is_refused() -> None:
    seen = Observation({"w": torch.ones(3, 2)}, 4, 3)
    with pytest.raises(ValueError, match="fitted for 4"):
        SoftLabels().fit(knowledge(cnn())).infer([seen])


def test_implausible_labels_have_a_cost() -> None:
    found = implausibility(np.array([[0, 1, 0, 0], [0.6, 0.1, 0.2, 0.1], [1.1, -0.1, 0, 0]]))
    assert found[0] == 0
    assert found[1] == 0
    assert found[2] > 0


def prepared(colour: bool, seed: int) -> tuple[nn.Module, tuple[Tensor, Tensor], Knowledge]:
    """A fresh model of the LLG paper, the victims' images and the attacker's knowledge."""
    images, first = (cifar(), 3500) if colour else (mnist.images(), mnist.AUXILIARY)
    model = mnist.network(seed, sigmoid=False)
    if colour:
        torch.manual_seed(seed)
        model[0], model[-1] = nn.Conv2d(3, 12, 5, padding=2, stride=2), nn.Linear(768, 10)  # type: ignore[operator]
    known = Knowledge(
        model=model,
        auxiliary=(images[0][first - 1000 : first], images[1][first - 1000 : first]),
        num_classes=10,
        seed=seed,
    )
    return model, (images[0][first:], images[1][first:]), known


@pytest.mark.slow
@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("smoothing", [0.1, 0.2])
def test_label_smoothing_is_no_defence(colour: bool, smoothing: float) -> None:
    """The rescaled bias identity reads what smoothing leaves.

    Measured on fresh models (5 seeds), MNIST and CIFAR-10 alike: SoftLabels 1.00 with the smoothing
    given or estimated, at B = 8 and 64, smoothing .1 and .2. BiasCount, which knows nothing of it,
    1.00 and .98 at B = 8, .94 and .88 at B = 64; LLG .96 and .80 as without smoothing.
    """
    scores: dict[str, list[float]] = {}
    for seed in range(5):
        model, images, known = prepared(colour, seed)
        rng = np.random.default_rng(seed)
        for size in (8, 64):
            drawn = [draw(*images, size, "skewed", rng) for _ in range(10)]
            seen = [
                Observation(gradient(model, x, smooth(y, smoothing, 10)), size, 10)
                for x, y, _ in drawn
            ]
            counts = np.stack([c for _, _, c in drawn])
            for attack in (SoftLabels(), SoftLabels(smoothing), BiasCount(), LLG()):
                name = f"{type(attack).__name__} {getattr(attack, 'smoothing', '')} {size}"
                scores.setdefault(name, []).append(overlap(attack.fit(known).infer(seen), counts))
    for told in (None, smoothing):
        assert np.mean(scores[f"SoftLabels {told} 8"] + scores[f"SoftLabels {told} 64"]) > 0.98
    assert np.mean(scores["BiasCount  8"]) > 0.95
    assert np.mean(scores["BiasCount  64"]) > 0.85
    assert np.mean(scores["LLG  8"]) > 0.92
    assert np.mean(scores["LLG  64"]) > 0.75


@pytest.mark.slow
@pytest.mark.parametrize("colour", [False, True])
def test_mixup_is_no_defence(colour: bool) -> None:
    """Mixup within the batch (share from Beta(1, 1)) leaves the sum of its labels.

    Measured on fresh models (5 seeds), MNIST and CIFAR-10 alike: SoftLabels and BiasCount 1.00 at
    B = 8 and 64, LLG .96 and .80 as without mixup.
    """
    scores: dict[str, list[float]] = {}
    for seed in range(5):
        model, images, known = prepared(colour, seed)
        rng, torch_rng = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        for size in (8, 64):
            drawn = [draw(*images, size, "skewed", rng) for _ in range(10)]
            seen = [
                Observation(
                    gradient(model, *mixed(x, y, float(rng.beta(1, 1)), torch_rng, 10)), size, 10
                )
                for x, y, _ in drawn
            ]
            counts = np.stack([c for _, _, c in drawn])
            for attack in (SoftLabels(), BiasCount(), LLG()):
                name = f"{type(attack).__name__} {size}"
                scores.setdefault(name, []).append(overlap(attack.fit(known).infer(seen), counts))
    for size in (8, 64):
        assert np.mean(scores[f"SoftLabels {size}"]) > 0.98
        assert np.mean(scores[f"BiasCount {size}"]) > 0.98
    assert np.mean(scores["LLG 8"]) > 0.92
    assert np.mean(scores["LLG 64"]) > 0.75


@pytest.mark.slow
@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("steps", [0, 300])
def test_soft_labels_of_single_examples_are_restored_without_a_bias(
    colour: bool, steps: int
) -> None:
    """The paper's abstract: more than 95 %, on CIFAR-100, Flowers-17 and ImageNet.

    Measured, a soft label within .01 in every entry, of 100: 100 smoothed and 100 mixed ones on
    fresh models, MNIST and CIFAR-10, and on a CIFAR-10 model of 300 steps; on an MNIST model of 300
    steps 80 smoothed and 99 mixed. Not reproduced for the 80: there the confidence saturates, and
    other feature sizes look as plausible.
    """
    model, images, known = prepared(colour, 0)
    assert known.auxiliary is not None
    model[-1] = nn.Linear(768 if colour else 588, 10, bias=False)  # type: ignore[operator]
    # Trained on the attacker's own images, whose feature sums bound the search.
    model = trained(model, *known.auxiliary, steps)
    fitted = SoftLabels().fit(replace(known, model=model))
    rng, found = np.random.default_rng(0), {"smoothed": 0, "mixed": 0}
    for _ in range(100):
        (a, first, _), (b, second, _) = (draw(*images, 1, "iid", rng) for _ in range(2))
        share = float(rng.beta(1, 1))
        soft = {
            "smoothed": (a, smooth(first, 0.1, 10)),
            "mixed": (
                share * a + (1 - share) * b,
                share * one_hot(first, 10) + (1 - share) * one_hot(second, 10),
            ),
        }
        for name, (x, y) in soft.items():
            guess = fitted.soft_labels([Observation(gradient(model, x, y), 1, 10)])
            found[name] += int(np.abs(guess - y.numpy()).max() < 0.01)
    assert found["mixed"] > 95
    assert found["smoothed"] > (95 if colour or not steps else 70)
