"""Attackers fitted and scored on simulated messages, and messages that are unlike them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

from gradguard import AddGaussian, Defense
from gradguard.attacks.simulation import Pool, rehearse
from gradguard.attacks.threat import Attack, Client, Knowledge
from gradguard.evaluation import AttackSpec, UnusableInputError
from gradguard.evaluation.attackers import BLIND, select_attacks
from gradguard.evaluation.decisions.likeness import Likeness
from gradguard.evaluation.decisions.playing import Played, play
from tests.evaluation.decisions.messages import AUXILIARY, BATCH, DIGITS, NONE, net


def played(make_client: Callable[[str], Client], **changes: Any) -> Played:
    settings: dict[str, Any] = {
        "model": net(),
        "auxiliary": (AUXILIARY.images, AUXILIARY.labels),
        "num_classes": 10,
        "batch_size": BATCH,
    }
    attacks = select_attacks(
        AttackSpec(attackers=("LLG", "TemplateRegression(head)"), simulated=60)
    )
    knowledge = Knowledge(**(settings | changes))
    return play(make_client, knowledge, attacks, calibration=10, trials=30)


def test_no_image_is_both_learned_from_and_scored() -> None:
    seen: dict[str, set[bytes]] = {"attacker": set(), "victims": set()}
    client = NONE.client(net())

    def make_client(stream: str) -> Client:
        def noting(inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
            seen[stream] |= {image.numpy().tobytes() for image in inputs}
            return client(inputs, labels)

        return noting

    played(make_client)
    # A few digits are twice in the data, pixel by pixel; none is here.
    assert seen["attacker"]
    assert seen["victims"]
    assert not seen["attacker"] & seen["victims"]


def test_the_streams_of_noise_are_asked_for_by_name() -> None:
    asked = []

    def make_client(stream: str) -> Client:
        asked.append(stream)
        return Defense("noise", transform=AddGaussian(0.1)).client(net(), seed=len(asked))

    played(make_client)
    assert asked == ["attacker", "victims"]


def test_the_blind_guess_has_no_advantage_and_intervals_hold_the_estimate() -> None:
    found = played(lambda stream: NONE.client(net()))
    assert found.advantage(BLIND) == 0.0
    assert found.advantage_ci(BLIND) == (0.0, 0.0)
    for name in found.scored:
        low, high = found.rate_ci(name)
        assert low <= found.rate(name) <= high
        low, high = found.advantage_ci(name)
        assert low <= found.advantage(name) <= high


def test_an_attacker_that_never_errs_has_an_interval_all_the_same() -> None:
    truth = np.eye(4, dtype=np.int64)
    scored = {"always": np.ones(4), BLIND: np.full(4, 0.25)}
    found = Played({}, {}, "always", scored, truth, truth, 0)
    low, high = found.rate_ci("always")
    assert high == 1.0
    assert low == pytest.approx(0.025 ** (1 / 4))
    assert found.advantage_ci("always")[0] == pytest.approx((low - 0.25) / 0.75)


def test_an_attacker_that_is_never_right_has_an_interval_all_the_same() -> None:
    truth = np.eye(4, dtype=np.int64)
    scored = {"never": np.zeros(4), BLIND: np.full(4, 0.25)}
    found = Played({}, {}, "never", scored, truth, truth, 0)
    low, high = found.rate_ci("never")
    assert low == 0.0
    assert high == pytest.approx(1 - 0.025 ** (1 / 4))
    assert found.advantage_ci("never")[1] == pytest.approx((high - 0.25) / 0.75)


@pytest.mark.parametrize("read", [1.0, 0.5, 0.0])
def test_where_the_blind_guess_was_always_right_an_attacker_may_read_anything(read: float) -> None:
    truth = np.eye(20, dtype=np.int64)
    scored = {"lucky": np.full(20, read), BLIND: np.ones(20)}
    found = Played({}, {}, "lucky", scored, truth, truth, 0)
    assert found.advantage("lucky") == 0.0
    assert found.advantage_ci("lucky")[1] == 1.0
    assert found.advantage_ci("lucky")[0] <= 0.0
    assert found.advantage_ci(BLIND) == (0.0, 0.0)


def test_the_worst_attack_is_one_that_looks() -> None:
    noise = Defense("noise", transform=AddGaussian(100.0))
    found = played(lambda stream: noise.client(net(), seed=1))
    assert found.worst in ("LLG", "TemplateRegression(head)")


def test_where_no_attack_can_be_mounted_it_raises() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False))
    attacks: dict[str, Attack] = select_attacks(AttackSpec(attackers=("BiasCount",)))
    knowledge = Knowledge(
        model=model,
        auxiliary=(AUXILIARY.images, AUXILIARY.labels),
        num_classes=10,
        batch_size=BATCH,
    )
    with pytest.raises(UnusableInputError, match=r"nothing was measured: .*no bias"):
        play(lambda stream: NONE.client(model), knowledge, attacks, calibration=5, trials=5)


def simulated(defense: Defense, number: int = 100) -> Likeness:
    likeness, client = Likeness(10), defense.client(net(), seed=1)
    pool = Pool.of(AUXILIARY.images, AUXILIARY.labels, 10)
    rng = np.random.default_rng(0)
    for sent, _ in rehearse(client, pool, None, BATCH, number, rng):
        likeness.add(sent)
    return likeness


@pytest.mark.parametrize("defense", [NONE, Defense("noise", transform=AddGaussian(0.1))])
def test_messages_of_other_images_are_hardly_ever_called_unlike(defense: Defense) -> None:
    likeness, client = simulated(defense), defense.client(net(), seed=2)
    pool = Pool.of(DIGITS.images[900:], DIGITS.labels[900:], 10)
    rng = np.random.default_rng(1)
    wrong = [
        bool(likeness.unlike(sent)) for sent, _ in rehearse(client, pool, None, BATCH, 60, rng)
    ]
    assert np.mean(wrong) <= 0.1


def test_another_scale_and_another_share_of_zeros_are_unlike() -> None:
    likeness = simulated(NONE)
    sent = NONE.client(net())(DIGITS.images[900:908], DIGITS.labels[900:908])
    assert likeness.unlike(sent) == ()
    assert any("norm" in words for words in likeness.unlike({n: 50 * p for n, p in sent.items()}))
    sparse = {name: part * (part.abs() > part.abs().max() / 2) for name, part in sent.items()}
    assert any("not zero" in words for words in likeness.unlike(sparse))
