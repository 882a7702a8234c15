"""RLG: the set of labels from a singular value decomposition and linear programmes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gradguard.attacks import EBI, LLG, RLG, Knowledge, NotApplicableError, Observation
from gradguard.attacks.messages import head_weights
from gradguard.attacks.rlg import (
    class_directions,
    counts_from_set,
    present_classes,
    separable_by_programme,
)
from tests.attacks import published
from tests.attacks.models import batches, cnn, knowledge, overlap


def random_gradient(
    seed: int, *, size: int, classes: int, features: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, np.ndarray]:
    """The head's gradient on random signed features and confidences, and the label counts."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (size,), generator=rng)
    hidden = torch.randn(size, features, generator=rng, dtype=dtype)
    residuals = torch.randn(size, classes, generator=rng, dtype=dtype).softmax(dim=1)
    residuals[torch.arange(size), labels] -= 1
    return residuals.T @ hidden / size, np.bincount(labels.numpy(), minlength=classes)


def found_set(weight: Tensor, size: int) -> np.ndarray:
    return present_classes(class_directions(weight, size))


def infer(weight: Tensor, size: int) -> list[int]:
    seen = Observation({"head.weight": weight}, size, weight.shape[0])
    found: list[int] = RLG().fit(Knowledge()).infer([seen])[0].tolist()
    return found


problems = st.integers(3, 12).flatmap(
    lambda classes: st.tuples(st.just(classes), st.integers(1, classes - 1), st.integers(0, 10**6))
)


@given(problems)
@settings(max_examples=50)
def test_no_class_of_the_batch_is_missed(problem: tuple[int, int, int]) -> None:
    classes, size, seed = problem
    weight, counts = random_gradient(seed, size=size, classes=classes, features=classes + 8)
    assert found_set(weight, size)[counts > 0].all()


@given(problems)
@settings(max_examples=30)
def test_least_squares_decide_as_the_linear_programmes_do(problem: tuple[int, int, int]) -> None:
    classes, size, seed = problem
    weight, _ = random_gradient(seed, size=size, classes=classes, features=classes + 8)
    directions = class_directions(weight, size)
    plain = [separable_by_programme(directions, label) for label in range(classes)]
    assert present_classes(directions).tolist() == plain


def test_the_programme_decides_where_least_squares_are_not_clear() -> None:
    """A vector that leaves the others' cone by no more than rounding is not separable."""
    clear, unclear = 1e-3, 1e-7
    for lift, expected in ((clear, True), (unclear, False)):
        others = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        inside = np.array([1.0, 1.0, lift])
        directions = np.vstack([others, inside / np.linalg.norm(inside)])
        assert present_classes(directions).tolist() == [True, True, expected]


def test_a_vector_between_distant_others_is_not_separable() -> None:
    angles = np.radians([0.0, 65.0, -65.0])
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert present_classes(directions).tolist() == [False, True, True]


def test_small_batches_among_many_classes_are_named_exactly() -> None:
    for seed in range(20):
        weight, counts = random_gradient(seed, size=8, classes=40, features=30)
        assert (found_set(weight, 8) == (counts > 0)).all()


def test_repeated_labels_and_negative_features_do_not_matter() -> None:
    counts = np.eye(6, 8, dtype=np.int64) + 2 * np.eye(6, 8, k=1, dtype=np.int64)
    for activation in (nn.ReLU, nn.Tanh):
        layers = (activation() if isinstance(m, nn.ReLU) else m for m in cnn(classes=8))
        seen = [o for _, _, o in batches(nn.Sequential(*layers), counts)]
        found = np.stack([found_set(weight, 3) for weight in head_weights(seen)])
        assert (found == (counts > 0)).all(), activation


def test_absent_classes_are_named_too_when_the_batch_nears_the_number_of_classes() -> None:
    """With C - 1 independent examples every class is separable, whoever is there.

    The rows of P - Y then span all vectors that sum to zero, and one of these is negative at any
    given class alone.
    """
    wrong = {}
    for size in (3, 5, 7, 9):
        named = absent = 0
        for seed in range(40):
            weight, counts = random_gradient(seed, size=size, classes=10, features=30)
            found = found_set(weight, size)
            absent += int((counts == 0).sum())
            named += int(found[counts == 0].sum())
        wrong[size] = named / absent
    assert wrong[3] < 0.05
    assert wrong[3] <= wrong[5] < wrong[7] < wrong[9]
    assert wrong[9] == 1.0


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_the_same_answer_for_every_positive_multiple(scale: float) -> None:
    for dtype in (torch.float64, torch.float32):
        weight, _ = random_gradient(3, size=5, classes=12, features=20, dtype=dtype)
        assert infer(weight * scale, 5) == infer(weight, 5)


def test_one_example_of_two_classes_is_read_by_its_row_sums() -> None:
    """Each of two rows is the other's negative: both are separable, and the sum decides."""
    weight = torch.outer(torch.tensor([0.3, -0.3]), torch.tensor([1.0, 0.5]))
    assert found_set(weight, 1).all()
    assert infer(weight, 1) == [0, 1]


def test_rank_counts_singular_values_above_rounding() -> None:
    for dtype in (torch.float64, torch.float32):
        weight, _ = random_gradient(0, size=4, classes=12, features=20, dtype=dtype)
        assert class_directions(weight, 11).shape == (12, 4)
        assert class_directions(weight, 2).shape == (12, 2)  # never more than the batch
    assert class_directions(torch.zeros(5, 7), 3).shape == (5, 0)


def test_counts_take_llgs_step_within_the_set() -> None:
    """An impact of -.9375: class 0 at -3 takes it four times until class 2, at .44 left, is next.

    The second row has no negative row sum, and so no impact.
    """
    sums = np.array([[-3.0, -1.0, -0.5, 4.5], [0.1, 0.2, 0.3, 0.4]])
    members = np.array([[True, False, True, False], [False, True, True, False]])
    found = counts_from_set(sums, members, np.array([6, 5]))
    assert found.tolist() == [[4, 0, 2, 0], [0, 3, 2, 0]]


def test_a_set_larger_than_the_batch_keeps_the_most_negative_row_sums() -> None:
    sums = np.array([[-3.0, -1.0, -4.5, 8.5]])
    members = np.array([[True, True, True, False]])
    assert counts_from_set(sums, members, np.array([2])).tolist() == [[1, 0, 1, 0]]


def test_a_message_of_zeros_is_an_even_spread() -> None:
    assert infer(torch.zeros(5, 4), 3) == [1, 1, 1, 0, 0]


def test_batches_that_are_not_smaller_than_classes_and_features_are_not_applicable() -> None:
    for weight, size in ((torch.ones(4, 9), 4), (torch.ones(9, 4), 4), (torch.ones(4, 9), 8)):
        with pytest.raises(NotApplicableError, match=f"got a batch of {size}"):
            infer(weight, size)
    assert sum(infer(torch.ones(4, 9), 3)) == 3
    for known in (Knowledge(batch_size=4, num_classes=4), knowledge(cnn(), batch_size=8)):
        with pytest.raises(NotApplicableError, match="fewer examples"):
            RLG().fit(known)
    narrow = nn.Sequential(nn.Flatten(), nn.Linear(64, 2), nn.Linear(2, 4))
    with pytest.raises(NotApplicableError, match="4 classes and 2 features"):
        RLG().fit(knowledge(narrow, batch_size=3))
    RLG().fit(knowledge(cnn(), batch_size=3))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_gradient_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        infer(torch.full((4, 5), value), 2)


def test_sparsification_breaks_it_and_hides_nothing_from_others() -> None:
    """[ABS] of the paper: sparsification significantly reduces the attack's success.

    True of this test of feasibility, and no sign that labels are hidden. With half of the
    coordinates dropped, B = 8, C = 20: presence 1.00 falls to .47 and the success rate 1.00 to
    .84, while LLG and EBI read every label.
    """
    counts = np.random.default_rng(0).multinomial(8, np.full(20, 1 / 20), size=30)
    seen = [o for _, _, o in batches(cnn(classes=20), counts)]
    kept = [Observation(largest(o.update, 0.5), 8, 20) for o in seen]

    def presence(observations: list[Observation]) -> float:
        named = [found_set(weight, 8) for weight in head_weights(observations)]
        return float((np.stack(named) == (counts > 0)).mean())

    assert presence(seen) == 1.0
    assert presence(kept) < 0.6
    assert overlap(RLG().fit(Knowledge()).infer(seen), counts) == 1.0
    assert overlap(RLG().fit(Knowledge()).infer(kept), counts) < 0.9
    for attack in (LLG(), EBI()):
        assert overlap(attack.fit(Knowledge()).infer(kept), counts) > 0.99


def largest(update: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """The largest magnitudes of every tensor, and zeros."""
    out = {}
    for name, tensor in update.items():
        threshold = tensor.abs().flatten().quantile(1 - share)
        out[name] = torch.where(tensor.abs() >= threshold, tensor, 0.0)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.SiLU])
def test_a_hundred_classes_are_named_as_in_the_logs(activation: type[nn.Module]) -> None:
    """iLRG's logs, LeNet5 on CIFAR-100: LeAcc 1.000 up to B = 64, .980 at B = 128.

    B = 128 is outside RLG's condition, and not attacked here. Measured at B = 24 and 64 on the
    stand-in: 1.000 for all three activations.
    """
    for size in (24, 64):
        found = published.measure(
            RLG(),
            lambda seed: published.cifar_network(seed, activation),
            published.cifar(),
            size,
            models=5,
        )
        assert found.presence > 0.999
