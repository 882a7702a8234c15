from __future__ import annotations

import torch

from gradguard import Defense
from gradguard.evaluation import TrainingSpec, load_digits
from gradguard.evaluation.models import build_model, mlp
from gradguard.evaluation.training import Outcome, accuracy, loader, step_overhead, train
from tests.evaluation.examples import NONE

DIGITS = load_digits()
IMAGES, TEST = (
    (DIGITS.images[:900], DIGITS.labels[:900]),
    (DIGITS.images[900:], DIGITS.labels[900:]),
)


def run(defense: Defense | None, **changes: float) -> Outcome:
    spec = TrainingSpec(**({"steps": 60, "batch_size": 64, "learning_rate": 0.1} | changes))  # type: ignore[arg-type]
    model = build_model(mlp, input_shape=(1, 8, 8), num_classes=10, seed=0)
    return train(model, IMAGES, TEST, spec=spec, seed=0, defense=defense)


def noise(stddev: float) -> Defense:
    return Defense.from_dict({"name": "n", "transform": [{"AddGaussian": {"stddev": stddev}}]})


def test_training_learns() -> None:
    assert run(NONE).accuracy > 0.7


def test_no_defence_and_an_empty_defence_train_to_the_same_weights() -> None:
    bare, empty = run(None), run(NONE)
    for a, b in zip(bare.model.parameters(), empty.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_randomised_defence_trains_the_same_from_the_same_seed() -> None:
    assert run(noise(0.01)).accuracy == run(noise(0.01)).accuracy


def test_strong_noise_costs_accuracy() -> None:
    assert run(noise(1.0)).accuracy < run(NONE).accuracy - 0.2


def test_divergence_is_the_worst_utility_and_no_crash() -> None:
    for defense, changes in [
        (NONE, {"learning_rate": 1e20}),
        (None, {"learning_rate": 1e20}),
        (noise(1e30), {}),
        (Defense.from_dict({"name": "s", "transform": [{"Sign": {}}]}), {"learning_rate": 1e30}),
    ]:
        outcome = run(defense, **changes)
        assert outcome.diverged
        assert outcome.accuracy == 0.0


def test_loader_gives_full_shuffled_batches_in_a_seeded_order() -> None:
    def epoch(seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return list(loader(*IMAGES, batch_size=64, seed=seed))

    assert [len(labels) for _, labels in epoch(0)] == [64] * 14
    assert torch.equal(epoch(0)[0][1], epoch(0)[0][1])
    assert not torch.equal(epoch(0)[0][1], epoch(1)[0][1])
    inputs, labels = epoch(0)[0]
    where = [int((IMAGES[0] == x).flatten(1).all(dim=1).nonzero()[0]) for x in inputs]
    assert IMAGES[1][where].tolist() == labels.tolist()


def test_accuracy_leaves_the_mode_of_the_model_as_it_was() -> None:
    model = build_model(mlp, input_shape=(1, 8, 8), num_classes=10, seed=0)
    for mode in (True, False):
        model.train(mode)
        accuracy(model, *TEST)
        assert model.training is mode


def test_step_overhead_is_a_ratio_near_one_for_no_defence() -> None:
    ratio = step_overhead(
        lambda: build_model(mlp, input_shape=(1, 8, 8), num_classes=10, seed=0),
        IMAGES,
        spec=TrainingSpec(),
        defense=NONE,
    )
    # Wide: this shares a machine with other work. It must not be seconds, nor inverted.
    assert 0.3 < ratio < 10
