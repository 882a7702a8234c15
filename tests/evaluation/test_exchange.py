"""What the server sees over rounds: the client's own messages, pooled."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from gradguard import (
    DPSGD,
    AddGaussian,
    Defense,
    ErrorFeedback,
    KeepRandomK,
    KeepTopK,
    Sign,
    guard,
)
from gradguard.evaluation.exchange import Exchange, mean
from gradguard.evaluation.models import build_model, mlp
from gradguard.evaluation.running.memo import GradientMemo, MemoisedClient

MODEL = build_model(mlp, input_shape=(1, 4, 4), num_classes=3, seed=0)
INPUTS, LABELS = torch.rand(6, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1, 2])
NOISE = Defense("noise", transform=AddGaussian(1.0))
FEEDBACK = Defense("feedback", transform=ErrorFeedback(KeepTopK(0.02)))
RANDOM = Defense("random", transform=KeepRandomK(0.02))
PRIVATE = Defense("dp", dp=DPSGD(1.0, 1.0), transform=Sign())
ALL = [NOISE, FEEDBACK, RANDOM, PRIVATE, Defense("none", transform=[])]


def vector(message: dict[str, Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in message.values()])


def pooled(defense: Defense, rounds: int, participation: float = 1.0) -> Exchange:
    client = MemoisedClient(defense.client(MODEL, seed=1), GradientMemo(2**20))
    return Exchange(client, rounds=rounds, participation=participation, seed=2)


RAW = vector(pooled(ALL[-1], 1)(INPUTS, LABELS))


@pytest.mark.parametrize("defense", ALL, ids=lambda d: d.name)
def test_one_round_is_bitwise_the_clients_own_message(defense: Defense) -> None:
    plain, server = defense.client(MODEL, seed=1), pooled(defense, 1)
    for _ in range(2):
        assert torch.equal(vector(server(INPUTS, LABELS)), vector(plain(INPUTS, LABELS)))


@pytest.mark.parametrize("defense", ALL[1:], ids=lambda d: d.name)
def test_more_rounds_begin_with_the_messages_of_fewer(defense: Defense) -> None:
    five, two = (
        list(pooled(defense, 1).client.rounds(INPUTS, LABELS, number)) for number in (5, 2)
    )
    assert all(torch.equal(vector(a), vector(b)) for a, b in zip(five, two, strict=False))


@pytest.mark.parametrize("defense", [ALL[-1], Defense("sign", transform=Sign())])
def test_the_mean_of_equal_messages_is_bitwise_that_message(defense: Defense) -> None:
    once, often = pooled(defense, 1)(INPUTS, LABELS), pooled(defense, 97)(INPUTS, LABELS)
    assert all(torch.equal(once[name], often[name]) for name in once)


def test_the_rounds_of_a_client_are_those_of_a_deployed_guard() -> None:
    model = build_model(mlp, input_shape=(1, 4, 4), num_classes=3, seed=0)
    optimizer = guard(torch.optim.SGD(model.parameters(), lr=0.0), FEEDBACK.chain, model=model)
    sent = []
    for _ in range(4):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(INPUTS), LABELS).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        sent.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    rounds = pooled(FEEDBACK, 1).client.rounds(INPUTS, LABELS, 4)
    assert all(torch.equal(a, vector(b)) for a, b in zip(sent, rounds, strict=True))


def test_error_feedback_sends_over_rounds_what_it_withholds_in_one() -> None:
    errors = [float((vector(pooled(FEEDBACK, t)(INPUTS, LABELS)) - RAW).norm() / RAW.norm())
              for t in (1, 5, 20, 100)]  # fmt: skip
    assert all(later < earlier for earlier, later in pairwise(errors))
    assert errors[-1] < 0.25
    # Without it the hundredth message is the first.
    once, often = (pooled(Defense("k", transform=KeepTopK(0.02)), t) for t in (1, 100))
    assert torch.equal(vector(once(INPUTS, LABELS)), vector(often(INPUTS, LABELS)))


@pytest.mark.parametrize("defense", [NOISE, Defense("dp", dp=DPSGD(1.0, 1e-3), transform=[])])
def test_fresh_noise_shrinks_by_the_square_root_of_the_rounds(defense: Defense) -> None:
    spreads = []
    for rounds in (1, 100):
        server = pooled(defense, rounds)
        drawn = torch.stack([vector(server(INPUTS, LABELS)) for _ in range(30)])
        spreads.append(float(drawn.std(0).mean()))
    # The power to fail: a stream that began anew in each round would not shrink at all.
    assert spreads[0] / spreads[1] == pytest.approx(10, rel=0.05)


def test_the_coverage_of_random_coordinates_grows() -> None:
    for rounds in (1, 20, 100):
        sent = vector(pooled(RANDOM, rounds)(INPUTS, LABELS))
        share = float((sent[RAW != 0] != 0).float().mean())
        assert share == pytest.approx(1 - 0.98**rounds, abs=0.04)


def test_a_client_takes_part_at_least_once_and_as_often_as_is_set() -> None:
    rare, often = pooled(NOISE, 20, 1e-6), pooled(NOISE, 20, 0.5)
    assert {rare._taken() for _ in range(200)} == {1}
    taken = torch.tensor([often._taken() for _ in range(2000)]).float()
    assert float(taken.mean()) == pytest.approx(10, abs=0.25)
    assert float(taken.var()) == pytest.approx(5, abs=0.6)


def test_a_mean_keeps_names_and_types_and_does_not_write_into_messages() -> None:
    messages = [{"a": torch.ones(2, dtype=torch.bfloat16)}, {"a": torch.zeros(2).bfloat16()}]
    found = mean(messages)
    assert found["a"].dtype == torch.bfloat16
    assert found["a"].tolist() == [0.5, 0.5]
    assert messages[0]["a"].tolist() == [1, 1]


def test_a_next_round_before_any_first_is_a_first() -> None:
    one, other = (NOISE.client(MODEL, seed=3) for _ in range(2))
    raw = one.gradients(INPUTS, LABELS)
    assert torch.equal(vector(one.release(raw)), vector(other.release(raw, first=False)))
