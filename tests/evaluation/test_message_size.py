"""Bytes of real messages: those of a client that trains, encoded as it would send them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gradguard import (
    DPSGD,
    Cast,
    Defense,
    ErrorFeedback,
    GradTransform,
    Identity,
    KeepTopK,
    LocalTraining,
    MomentumCorrection,
    Quantize,
    Sign,
    WarmUp,
    Withhold,
    chain,
)
from gradguard.evaluation import Study, evaluate
from gradguard.evaluation.data import load_digits
from gradguard.evaluation.message_size import MESSAGES, bytes_per_update, dense_bytes
from gradguard.evaluation.specs import TrainingSpec
from tests.evaluation.examples import study_with

SPEC = TrainingSpec(steps=1, batch_size=32, learning_rate=0.1, momentum=0.9, seeds=1)
SIZE = 64 * 32 + 32 + 32 * 10 + 10
HEADER = 100  # more than a message of four tensors takes for names and shapes


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    return data.images, data.labels


def measured(
    transform: GradTransform | list[GradTransform],
    *,
    dp: DPSGD | None = None,
    cohort: int = 1,
    training: LocalTraining | None = None,
    seed: int = 0,
) -> float:
    defense = Defense("tried", transform=transform, dp=dp, cohort=cohort)
    found = bytes_per_update(
        model(), digits(), spec=SPEC, seed=seed, defense=defense, training=training
    )
    assert found is not None
    return found


def test_each_defence_takes_about_the_bytes_that_its_coordinates_need() -> None:
    # Digits have pixels that are always dark, and so gradients that are always zero.
    assert 0.5 * 4 * SIZE < measured([]) < 4 * SIZE + HEADER
    assert 0.5 * 2 * SIZE < measured(Cast("float16")) < 2 * SIZE + HEADER
    assert measured(Quantize(4)) < SIZE / 2 + HEADER
    assert measured(Sign()) < SIZE / 4 + HEADER
    kept = round(0.05 * SIZE)
    assert 4 * kept * 0.8 < measured(KeepTopK(0.05)) < 8 * kept + HEADER
    assert measured(Withhold("*")) < HEADER


def test_the_same_seed_gives_the_same_bytes_and_leaves_torchs_generator_alone() -> None:
    before = torch.get_rng_state()
    assert measured(Quantize(4), seed=3) == measured(Quantize(4), seed=3)
    assert measured(KeepTopK(0.05), seed=3) != measured(KeepTopK(0.05), seed=4)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_client_that_is_measured_trains_and_the_model_given_stays() -> None:
    given = model()
    before = [p.detach().clone() for p in given.parameters()]
    seen = []

    def loss(predictions: Tensor, labels: Tensor) -> Tensor:
        found = nn.functional.cross_entropy(predictions, labels)
        seen.append(float(found.detach()))
        return found

    class Spec(TrainingSpec):
        @property
        def criterion(self) -> object:  # type: ignore[override]
            return loss

    spec = Spec(steps=1, batch_size=32, learning_rate=1.0, momentum=0.9, seeds=1)
    defense = Defense("feedback", transform=ErrorFeedback(KeepTopK(0.2)))
    bytes_per_update(given, digits(), spec=spec, seed=0, defense=defense)
    assert len(seen) == MESSAGES
    assert seen[-1] < 0.8 * seen[0]
    assert all(torch.equal(a, b) for a, b in zip(before, given.parameters(), strict=True))


def test_frozen_parameters_are_no_part_of_a_message_compressed_or_not() -> None:
    part = model()
    part[1].requires_grad_(False)
    assert dense_bytes(part) == 4 * (32 * 10 + 10)
    assert dense_bytes(model()) == 4 * SIZE
    found = bytes_per_update(
        part, digits(), spec=SPEC, seed=0, defense=Defense("none", transform=[])
    )
    assert found is not None
    assert 0.9 * dense_bytes(part) < found < dense_bytes(part) + HEADER


def test_a_warm_up_is_counted_by_the_messages_after_it() -> None:
    for steps in (1, 500):
        settled = KeepTopK(0.05)
        for warming, after in (
            (WarmUp(settled, steps=steps), settled),
            (
                MomentumCorrection(0.9, WarmUp(settled, steps=steps)),
                MomentumCorrection(0.9, settled),
            ),
            (chain(Identity(), WarmUp(settled, steps=steps)), settled),
        ):
            assert measured(warming) == measured(after)


def test_noise_and_local_training_are_measured_too() -> None:
    private = DPSGD(noise_multiplier=1.0, max_grad_norm=1.0)
    kept = round(0.05 * SIZE)
    assert 0.8 * 4 * SIZE < measured([], dp=private) < 4 * SIZE + HEADER
    assert measured(KeepTopK(0.05), dp=private) < 8 * kept + HEADER
    local = LocalTraining(epochs=2, learning_rate=0.05, batch_size=8)
    assert measured(KeepTopK(0.05), training=local) < 8 * kept + HEADER


def test_a_client_of_a_cohort_sends_masked_words_whatever_its_transform_drops() -> None:
    for transform in (KeepTopK(0.01), Sign(), Withhold("*")):
        assert 4 * SIZE <= measured(transform, cohort=4) < 4 * SIZE + HEADER


def test_a_gradient_that_is_not_finite_has_no_bytes() -> None:
    images, labels = digits()
    found = bytes_per_update(
        model(),
        (images * float("inf"), labels),
        spec=SPEC,
        seed=0,
        defense=Defense("top-k", transform=KeepTopK(0.1)),
    )
    assert found is None


def test_a_report_says_the_bytes_of_every_row_and_how_they_were_counted() -> None:
    report = evaluate(Study.from_dict(study_with()))
    none, sparse = report.rows
    assert none.bytes_per_update is not None
    assert sparse.bytes_per_update is not None
    assert 0.5 * none.dense_bytes < none.bytes_per_update < none.dense_bytes + HEADER
    assert sparse.bytes_per_update < 0.02 * sparse.dense_bytes + HEADER
    assert report.provenance["messages_encoded"] == {"per_defense": MESSAGES, "compressor": "zlib"}
    assert "Bytes are the mean length of the messages" in report.provenance["method"]
