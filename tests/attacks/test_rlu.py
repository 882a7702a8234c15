"""RLU against its system of equations, local training, and the released simplification."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax
from torch import Tensor, nn

from gradguard.attacks import RLU, ZLG, BiasCount, Knowledge, NotApplicableError, Observation
from gradguard.attacks.rlu import erroneous_confidence, solve_counts
from gradguard.attacks.rounding import Floats, project_to_simplex, round_to_batch
from gradguard.evaluation.models import MODELS, build_model
from tests.attacks import mnist
from tests.attacks.local_training import cifar, draw, local_change, trained
from tests.attacks.models import CLASSES, batches, cnn, data, gradient, knowledge, overlap, skewed
from tests.attacks.test_zlg import released_zlg_plus


def residual(confidence: Floats, bias: Floats, shares: Floats) -> float:
    return float(np.linalg.norm((confidence - np.eye(len(bias))).T @ shares - bias))


def plain_solution(confidence: Floats, bias: Floats) -> Floats:
    """Projected gradient descent on the simplex, slowly."""
    matrix = (confidence - np.eye(len(bias))).T
    shares = np.full(len(bias), 1 / len(bias))
    rate = 1 / (float(np.linalg.norm(matrix, 2)) ** 2 + 1e-12)
    for _ in range(2_000):
        shares = project_to_simplex([shares - rate * matrix.T @ (matrix @ shares - bias)], 1)[0]
    return shares


@settings(max_examples=10, deadline=None)
@given(
    arrays(np.float64, (4, 4), elements=st.integers(-8, 8).map(lambda i: i / 4)),
    arrays(np.float64, (4,), elements=st.integers(-8, 8).map(lambda i: i / 8)),
)
def test_solution_is_the_least_squares_one_on_the_simplex(logits: Floats, bias: Floats) -> None:
    confidence = softmax(logits, axis=1)
    found = solve_counts(confidence, bias)
    assert (found >= 0).all()
    assert found.sum() == pytest.approx(1)
    best = residual(confidence, bias, plain_solution(confidence, bias))
    assert residual(confidence, bias, found) <= best + 1e-9


@pytest.mark.parametrize("size", [1e-9, 1.0])
def test_equations_are_solved_at_any_scale(size: float) -> None:
    """A confident model's system is tiny in every entry."""
    rng = np.random.default_rng(0)
    confidence = np.eye(5) * (1 - size) + size * rng.dirichlet(np.ones(5), size=5)
    shares = rng.dirichlet(np.ones(5))
    bias = (confidence - np.eye(5)).T @ shares
    np.testing.assert_allclose(solve_counts(confidence, bias), shares, atol=1e-5)


def test_equations_that_say_nothing_give_the_even_spread() -> None:
    assert solve_counts(np.eye(4), np.zeros(4)).tolist() == [0.25] * 4


@pytest.mark.parametrize("steps", [0, 20, 40])
def test_exact_where_examples_have_their_classes_mean_confidences(steps: int) -> None:
    """Given the batch itself as auxiliary data, its class means are the batch's own."""
    model = trained(cnn(), *data(400, seed=2), steps).double()
    counts = np.array([[5, 2, 1, 0], [1, 1, 1, 5], [10, 20, 1, 1]])
    for inputs, labels, seen in batches(model, counts):
        known = knowledge(model, seen.batch_size, auxiliary=(inputs, labels))
        found = RLU().fit(known).infer([seen])[0].tolist()
        assert found == torch.bincount(labels, minlength=CLASSES).tolist()


def test_bias_gradient_of_the_wrong_sign_is_not_read() -> None:
    counts = skewed(20)
    seen = [o for _, _, o in batches(cnn(), counts)]
    fitted = RLU().fit(knowledge(cnn()))
    turned = [Observation({n: -t for n, t in o.update.items()}, 8, CLASSES) for o in seen]
    assert overlap(fitted.infer(seen), counts) > 0.97
    assert overlap(fitted.infer(turned), counts) < 0.5


def test_confidence_of_a_class_without_examples_is_the_mean_of_the_others() -> None:
    probabilities = np.array([[0.6, 0.2, 0.2], [0.4, 0.4, 0.2], [0.1, 0.8, 0.1]])
    found = erroneous_confidence(probabilities, np.array([0, 0, 1]))
    np.testing.assert_allclose(found, [[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.3, 0.55, 0.15]])


def test_head_without_bias_is_not_applicable() -> None:
    with pytest.raises(NotApplicableError, match="no bias"):
        RLU().fit(knowledge(cnn(bias=False)))


def test_other_number_of_classes_is_refused() -> None:
    seen = Observation({"b.weight": torch.ones(3, 2), "b.bias": torch.ones(3)}, 4, 3)
    with pytest.raises(ValueError, match="fitted for 4"):
        RLU().fit(knowledge(cnn())).infer([seen])


@pytest.mark.parametrize("momentum", [-0.1, 1.0, float("nan")])
def test_momentum_out_of_range_is_refused(momentum: float) -> None:
    with pytest.raises(ValueError, match="momentum"):
        RLU(momentum)
    with pytest.raises(ValueError, match="rounds"):
        RLU(rounds=-1)


def local(momentum: float, counts: np.ndarray, *, seed: int = 0) -> list[Observation]:
    """Ten full-batch steps, large enough to move the confidences."""
    model = cnn(seed)
    pairs = [(x, y) for x, y, _ in batches(model, counts)]
    return [local_change(model, [pair] * 10, 0.1 * (1 - momentum), momentum) for pair in pairs]


def test_several_steps_are_read_better_than_by_one_confidence() -> None:
    """Measured: .98 against .90."""
    counts = skewed(20, 32)
    found = {}
    for attack in (RLU(), BiasCount()):
        fitted = attack.fit(knowledge(cnn(), 32))
        found[type(attack)] = overlap(fitted.infer(local(0.0, counts)), counts)
    assert found[RLU] > found[BiasCount] + 0.03
    assert found[RLU] > 0.95


def test_momentum_that_is_known_is_accounted_for() -> None:
    """Measured: 1.00 against .60."""
    counts = skewed(20, 32)
    seen = local(0.9, counts)
    told, untold = (
        overlap(RLU(momentum).fit(knowledge(cnn(), 32)).infer(seen), counts)
        for momentum in (0.9, 0.0)
    )
    assert told > untold + 0.1


def released(confidence: Floats, seen: list[Observation], rho: float) -> torch.Tensor:
    """The released simplification: ``n ~ max(0, rho S_c - db_c)``, ``S_c`` over other classes."""
    others = np.array([np.delete(confidence[:, c], c).mean() for c in range(CLASSES)])
    shares = np.stack([rho * others - o.update["5.bias"].double().numpy() for o in seen])
    shares = np.maximum(shares, 0) + 1e-12
    sizes = np.array([o.batch_size for o in seen])
    return torch.from_numpy(
        round_to_batch(sizes[:, None] * shares / shares.sum(1, keepdims=True), sizes)
    )


def test_released_simplification_leaves_out_the_own_class_and_reads_less() -> None:
    """On models that have begun to learn. Measured: 1.00 against .93."""
    counts = skewed(40, 32)
    ours, theirs = [], []
    for seed in range(3):
        model = trained(cnn(seed), *data(400, seed=2), 30)
        seen = [o for _, _, o in batches(model, counts)]
        fitted = RLU().fit(knowledge(model, 32))
        ours.append(overlap(fitted.infer(seen), counts))
        theirs.append(overlap(released(fitted.confidence, seen, 1.0), counts))
    assert np.mean(ours) > np.mean(theirs) + 0.03


def prepared(
    colour: bool, name: str, seed: int, steps: int = 0
) -> tuple[nn.Module, tuple[Tensor, Tensor], Knowledge]:
    """A model, perhaps trained, the victims' images and the attacker's knowledge; all disjoint."""
    (inputs, labels), first = (cifar(), 3500) if colour else (mnist.images(), mnist.AUXILIARY)
    own = slice(first - 1000, first)
    shape = tuple(inputs.shape[1:])
    model = build_model(MODELS[name], input_shape=shape, num_classes=10, seed=seed)
    model = trained(model, inputs[: first - 1000], labels[: first - 1000], steps)
    known = Knowledge(model=model, auxiliary=(inputs[own], labels[own]), num_classes=10, seed=seed)
    return model, (inputs[first:], labels[first:]), known


@pytest.mark.slow
@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("name", ["cnn-relu", "lenet"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_ten_local_epochs_of_fresh_models_are_read(
    colour: bool, name: str, momentum: float
) -> None:
    """Figures that a digest quotes from the paper: one epoch near perfect; ten at least .84 of the
    classes' presence and .90 of the labels, .93 at Dirichlet .05, .88 with momentum .9.

    Measured at learning rate .01, B = 64, skewed and Dirichlet .05: of the labels .99 to 1.00 in
    all eight settings, of presence .95 to 1.00. Not reproduced: an MLP on CIFAR-10 at Dirichlet .05
    (.92 of the labels, .62 of presence), and learning rate .05 at Dirichlet .05 with ``cnn-relu``
    (.85 and .75 of the labels, .41 and .33 of presence on MNIST and CIFAR-10): there the body of
    the model moves too, which the simulated drift leaves out.
    """
    for composition in ("skewed", "dirichlet:0.05"):
        labels, presence = [], []
        for seed in range(2):
            model, images, known = prepared(colour, name, seed)
            rng = np.random.default_rng(seed)
            drawn = [draw(*images, 64, composition, rng) for _ in range(4)]
            counts = np.stack([c for _, _, c in drawn])
            seen = [local_change(model, [(x, y)] * 10, 0.01, momentum) for x, y, _ in drawn]
            found = RLU(momentum).fit(known).infer(seen)
            labels.append(overlap(found, counts))
            presence.append(((found.numpy() > 0) == (counts > 0)).mean())
            once = [local_change(model, [(x, y)], 0.01) for x, y, _ in drawn]
            assert overlap(RLU().fit(known).infer(once), counts) > 0.97
        assert np.mean(labels) > 0.93
        assert np.mean(presence) > 0.84


@pytest.mark.slow
def test_trained_models_are_read_better_than_by_one_confidence_yet_not_well() -> None:
    """The digest quotes that at 90 % accuracy ZLG+ trails RLU by 21 to 33 points.

    Measured at 94 % accuracy (300 steps on MNIST, four seeds, skewed batches of 64): RLU .62, ZLG+
    .45, as published and as RLU's repository has it, BiasCount .45; the flat guess has .39. Not
    reproduced: that one epoch is read nearly perfectly everywhere. On batches of 8 RLU has .44
    there; on a fresh model 1.00.
    """
    scores: dict[str, list[float]] = {}
    for seed in range(4):
        model, images, known = prepared(False, "cnn-relu", seed, 300)
        rng = np.random.default_rng(seed)
        drawn = [draw(*images, 64, "skewed", rng) for _ in range(30)]
        counts = np.stack([c for _, _, c in drawn])
        seen = [Observation(gradient(model, x, y), 64, 10) for x, y, _ in drawn]
        for attack in (RLU(), ZLG("auxiliary"), BiasCount()):
            found = overlap(attack.fit(known).infer(seen), counts)
            scores.setdefault(type(attack).__name__, []).append(found)
        own = overlap(released_zlg_plus(known, seen), counts)
        scores.setdefault("released", []).append(own)
    assert np.mean(scores["RLU"]) > np.mean(scores["ZLG"]) + 0.1
    assert np.mean(scores["RLU"]) > np.mean(scores["released"]) + 0.1
    assert np.mean(scores["RLU"]) < 0.75
