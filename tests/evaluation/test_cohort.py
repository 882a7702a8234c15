"""The server sees the mean over a cohort; all other clients are played."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gradguard import DPSGD, AddGaussian, Defense, ErrorFeedback, KeepTopK, Sign
from gradguard.evaluation import Study, evaluate, load_digits
from gradguard.evaluation.cohort import OtherClients
from gradguard.evaluation.exchange import Exchange
from gradguard.evaluation.federated import train_federated
from gradguard.evaluation.models import build_model, mlp
from gradguard.evaluation.nesting import nested
from gradguard.evaluation.running.bench import Cell, prepare
from gradguard.evaluation.running.cell import _exchange
from gradguard.evaluation.running.memo import GradientMemo, MemoisedClient
from gradguard.evaluation.specs import TrainingSpec
from gradguard.evaluation.training import train
from tests.evaluation.examples import NONE, study_with

DIGITS = load_digits()
POOL = np.arange(400)
MODEL = build_model(mlp, input_shape=(1, 8, 8), num_classes=10, seed=0)
INPUTS, LABELS = DIGITS.images[400:408], DIGITS.labels[400:408]
SIGN = Defense("sign", transform=Sign())


def vector(message: dict[str, Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in message.values()])


def others(room: int = 2**24) -> OtherClients:
    return OtherClients(DIGITS, POOL, "skewed", 8, seed=3, room=room)


def server(defense: Defense, cohort: int, *, rounds: int = 1, room: int = 2**24) -> Exchange:
    client = MemoisedClient(defense.client(MODEL, seed=1), GradientMemo(2**24))
    return Exchange(client, rounds=rounds, cohort=cohort, others=others(room), seed=5)


def test_a_message_is_the_mean_of_what_all_clients_of_the_cohort_send() -> None:
    sent = vector(server(SIGN, 4)(INPUTS, LABELS))
    own = vector(SIGN.client(MODEL)(INPUTS, LABELS))
    indices = np.random.default_rng(5).choice(2048, 3, replace=False)
    batches = [others().batch(int(index)) for index in indices]
    rest = [vector(SIGN.client(MODEL)(batch.inputs, batch.labels)) for batch in batches]
    torch.testing.assert_close(sent, torch.stack([own, *rest]).mean(0))


def test_a_cohort_of_one_is_the_client_alone() -> None:
    own = SIGN.client(MODEL)(INPUTS, LABELS)
    assert torch.equal(vector(server(SIGN, 1)(INPUTS, LABELS)), vector(own))


def test_the_noise_of_a_cohort_is_that_of_independent_clients() -> None:
    noise = Defense("noise", transform=AddGaussian(1.0))
    silent = server(NONE, 16)
    noisy = server(noise, 16)
    # Equal seeds draw equal others: what is left is the mean of 16 independent noises.
    gaps = [vector(noisy(INPUTS, LABELS)) - vector(silent(INPUTS, LABELS)) for _ in range(3)]
    for gap in gaps:
        assert float(gap.std()) == pytest.approx(1 / 4, rel=0.05)
    assert float((gaps[0] * gaps[1]).mean()) == pytest.approx(0, abs=0.005)


def test_others_hold_batches_of_the_composition_and_of_their_pool_only() -> None:
    images = {image.numpy().tobytes() for image in DIGITS.images[torch.from_numpy(POOL)]}
    for index in range(20):
        batch = others().batch(index)
        assert sorted(batch.counts)[-1] >= 4  # half of a skewed batch has one label
        assert len(batch.labels) == 8
        assert {image.numpy().tobytes() for image in batch.inputs} <= images
    assert torch.equal(others().batch(7).inputs, others().batch(7).inputs)
    assert not torch.equal(others().batch(7).inputs, others().batch(8).inputs)


def test_room_for_gradients_changes_no_message() -> None:
    kept, again = server(SIGN, 5), server(SIGN, 5, room=0)
    for _ in range(3):
        assert torch.equal(vector(kept(INPUTS, LABELS)), vector(again(INPUTS, LABELS)))


def test_a_cohort_over_rounds_has_other_clients_in_each() -> None:
    pooled = vector(server(NONE, 4, rounds=50)(INPUTS, LABELS))
    own = vector(NONE.client(MODEL)(INPUTS, LABELS))
    drawn = [others().batch(index) for index in range(300)]
    typical = torch.stack([vector(NONE.client(MODEL)(b.inputs, b.labels)) for b in drawn]).mean(0)
    one = vector(server(NONE, 4)(INPUTS, LABELS))
    expected = (own + 3 * typical) / 4
    assert float((pooled - expected).norm()) < 0.4 * float((one - expected).norm())


def test_others_are_needed() -> None:
    client = MemoisedClient(NONE.client(MODEL), GradientMemo(0))
    with pytest.raises(ValueError, match="a cohort of 2 needs others"):
        Exchange(client, cohort=2)(INPUTS, LABELS)


def table(**changes: Any) -> dict[str, Any]:
    defenses: list[dict[str, Any]] = [
        {"name": f"K = {k}", "cohort": k, "transform": []} for k in (1, 4, 16)
    ]
    return study_with(defense=defenses, **changes)


def test_a_cohort_is_rehearsed_with_auxiliary_images_and_attacked_with_others() -> None:
    bench = prepare(Study.from_dict(table()))
    cell = Cell("init", "skewed", 4)
    rows = {
        which: {
            image.numpy().tobytes()
            for index in range(30)
            for image in bench.others(which, cell, 0).batch(index).inputs
        }
        for which in ("auxiliary", "calibration", "scored")
    }
    for which, images in rows.items():
        part = bench.data.images[torch.from_numpy(getattr(bench.parts, which))]
        assert images <= {image.numpy().tobytes() for image in part}
    found = _exchange(bench, cell, bench.study.defenses[1], 0, MODEL, ("x",), "scored")
    assert found.cohort == 4
    assert found.others is bench.others("scored", Cell("init", "skewed", 4, rounds=9), 0)


def test_aggregation_hides_what_a_client_alone_gives_away() -> None:
    report = evaluate(Study.from_dict(table(attack={"trials": 40, "attackers": ["LLG"]})))
    alone, four, sixteen = report.rows
    assert alone.attacks["LLG"].asr > four.attacks["LLG"].asr > sixteen.attacks["LLG"].asr
    assert report.provenance["warnings"] == []
    assert report.study["defense"][1]["cohort"] == 4
    assert "Of a cohort the server sees the mean" in report.provenance["method"]
    assert "several rounds" not in report.provenance["method"]


def test_defences_are_nested_in_those_of_larger_cohorts_and_the_same_chain() -> None:
    noise = Defense("noise", transform=AddGaussian(0.1))
    defenses = [NONE, noise, *(Defense(f"{d.name} {k}", transform=d.chain, cohort=k)
                               for d in (NONE, noise) for k in (4, 16))]  # fmt: skip
    found = set(nested(defenses))
    assert found >= {("none", "none 4"), ("none 4", "none 16"), ("none", "noise 16")}
    # The sum of noised messages could be had from the sum; of other transforms it could not.
    assert ("none 4", "noise 4") not in found
    assert not any(inner.endswith("16") and outer.endswith("4") for inner, outer in found)


def test_a_cohort_trains_on_the_mean_of_its_clients_messages() -> None:
    spec = TrainingSpec(steps=3, batch_size=8, learning_rate=0.1)
    data = (DIGITS.images[:200], DIGITS.labels[:200])
    alone, cohort = (
        train_federated(
            build_model(mlp, input_shape=(1, 8, 8), num_classes=10, seed=0),
            *(data, data),
            spec=spec,
            seed=1,
            defense=Defense("k", transform=ErrorFeedback(KeepTopK(0.1)), cohort=k),
        )
        for k in (1, 2)
    )
    model = build_model(mlp, input_shape=(1, 8, 8), num_classes=10, seed=0)
    feedback = Defense("k", transform=ErrorFeedback(KeepTopK(0.1)))
    deployed = train(model, data, data, spec=spec, seed=1, defense=feedback)
    # One client: the loop that is deployed, residuals over the rounds included.
    for mine, theirs in zip(alone.model.parameters(), deployed.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert not torch.equal(next(alone.model.parameters()), next(cohort.model.parameters()))


@pytest.mark.parametrize("defense", [SIGN, Defense("dp", dp=DPSGD(1.0, 1.0), transform=[])])
def test_training_a_cohort_is_repeatable(defense: Defense) -> None:
    spec = TrainingSpec(steps=4, batch_size=8)
    data = (DIGITS.images[:200], DIGITS.labels[:200])
    vectors = []
    for _ in range(2):
        model = build_model(mlp, input_shape=(1, 8, 8), num_classes=10, seed=0)
        several = Defense("d", transform=defense.chain, dp=defense.dp, cohort=3)
        outcome = train_federated(model, data, data, spec=spec, seed=1, defense=several)
        assert outcome.model is model
        vectors.append(torch.nn.utils.parameters_to_vector(model.parameters()))
    assert torch.equal(*vectors)
    fresh = build_model(mlp, input_shape=(1, 8, 8), num_classes=10, seed=0)
    assert not torch.equal(vectors[0], torch.nn.utils.parameters_to_vector(fresh.parameters()))


def test_a_cohort_that_diverges_has_no_accuracy() -> None:
    spec = TrainingSpec(steps=20, batch_size=8, learning_rate=1e30)
    data = (DIGITS.images[:200], DIGITS.labels[:200])
    model = build_model(mlp, input_shape=(1, 8, 8), num_classes=10, seed=0)
    outcome = train_federated(
        model, data, data, spec=spec, seed=1, defense=Defense("n", transform=[], cohort=2)
    )
    assert (outcome.accuracy, outcome.diverged) == (0.0, True)
