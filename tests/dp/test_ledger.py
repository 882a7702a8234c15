"""The ledger: exact epsilons, a budget that stops in time, a state that survives."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradguard.dp import PrivacyBudgetExhausted, PrivacyLedger
from gradguard.dp.gaussian import gaussian_delta, gaussian_dp_epsilon
from gradguard.dp.ledger import epsilon_of
from tests.dp.setting import batch, epoch, private, step

# Closed forms: noise multiplier, epsilon at delta 1e-5 for one record added, and for one replaced.
GAUSSIAN = [
    *((0.5, 9.997256, 24.381611), (1.0, 4.377178, 9.997256), (2.0, 1.993091, 4.377178)),
    *((4.0, 0.926342, 1.993091), (10.0, 0.340669, 0.725522)),
]
# Noise, rate, releases, epsilon at delta 1e-5 by a pessimistic numerical composition.
SUBSAMPLED = [
    *((1.0, 0.01, 1, 0.199450), (1.0, 0.01, 1000, 1.828244), (1.0, 0.1, 1, 1.684544)),
    *((1.0, 0.1, 10, 2.854519), (1.0, 0.1, 100, 7.046603)),
]


@pytest.mark.parametrize(("z", "added", "replaced"), GAUSSIAN)
def test_closed_form_epsilons_are_those_of_gaussian_dp(
    z: float, added: float, replaced: float
) -> None:
    assert gaussian_dp_epsilon(1 / z, 1e-5) == pytest.approx(added, abs=1e-6)
    assert gaussian_dp_epsilon(2 / z, 1e-5) == pytest.approx(replaced, abs=1e-6)


@given(st.floats(0.01, 50), st.floats(1e-9, 0.5))
def test_epsilon_is_the_inverse_of_delta(mu: float, delta: float) -> None:
    epsilon = gaussian_dp_epsilon(mu, delta)
    if epsilon > 0:
        assert gaussian_delta(mu, epsilon) == pytest.approx(delta, rel=1e-6)
    else:
        assert gaussian_delta(mu, 0.0) <= delta


@pytest.mark.parametrize("mu", [1e7, 1e160, math.inf])
def test_next_to_no_noise_is_infinite_epsilon(mu: float) -> None:
    assert gaussian_dp_epsilon(mu, 1e-5) == math.inf


@pytest.mark.parametrize(("z", "q", "count", "epsilon"), SUBSAMPLED)
def test_the_ledger_is_never_below_the_pessimistic_composition_and_little_above(
    z: float, q: float, count: int, epsilon: float
) -> None:
    found = epsilon_of([(z, q, count)], 1e-5)
    assert epsilon - 1e-4 <= found <= epsilon + 0.011
    assert epsilon_of([(z, q, count)], 1e-5, "rdp") >= found


def test_where_the_numerical_accountant_fails_the_looser_one_answers() -> None:
    found = epsilon_of([(0.05, 0.01, 5)], 1e-5)
    assert 0 < found < math.inf


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.floats(0.5, 4.0))
def test_a_budget_stops_at_the_last_release_that_it_pays_for(count: int, z: float) -> None:
    budget = epsilon_of([(z, 1.0, count)], 1e-5) * (1 + 1e-9)
    ledger = PrivacyLedger(max_epsilon=budget, delta=1e-5)
    for _ in range(count):
        ledger.charge(z, 1.0)
    with pytest.raises(PrivacyBudgetExhausted, match=f"{count} releases were made"):
        ledger.charge(z, 1.0)
    assert ledger.releases == count
    assert ledger.epsilon(1e-5) <= budget


def _charge_forever(ledger: PrivacyLedger) -> None:
    for i in itertools.count():
        ledger.charge(3.0 if i % 3 else 2.0, 1.0)


def test_a_budget_holds_for_changing_noise_as_well() -> None:
    ledger = PrivacyLedger(max_epsilon=5.0, delta=1e-5)
    with pytest.raises(PrivacyBudgetExhausted):
        _charge_forever(ledger)
    assert 4.5 < ledger.epsilon(1e-5) <= 5.0


def test_training_stops_before_the_release_that_would_exceed_the_budget() -> None:
    training = private(max_epsilon=6.0, target_delta=1e-5, batch_size=16)
    weights: list[torch.Tensor] = []

    def train_forever() -> None:
        while True:
            weights[:] = [p.detach().clone() for p in training.model.parameters()]
            step(training, *batch(16))

    with pytest.raises(PrivacyBudgetExhausted):
        train_forever()
    assert 0 < training.epsilon(1e-5) <= 6.0
    assert training.releases == training.ledger.releases
    # The refused step has changed nothing.
    assert all((p == w).all() for p, w in zip(training.model.parameters(), weights, strict=True))


def test_a_target_epsilon_is_reached_and_not_exceeded() -> None:
    options: dict[str, Any] = {"target_epsilon": 3.0, "target_delta": 1e-5, "epochs": 5}
    training = private(**options)
    for _ in range(5):
        epoch(training)
    assert 2.9 < training.epsilon(1e-5) <= 3.0
    with pytest.raises(ValueError, match="on top of which"):
        private(ledger=training.ledger, **options)


def test_the_state_is_json_and_continues_exactly() -> None:
    ledger = PrivacyLedger("rdp", max_epsilon=50.0, delta=1e-6)
    ledger.charge(1.0, 0.25)
    ledger.charge(2.0, 0.25)
    again = PrivacyLedger.from_json(ledger.to_json())
    for book in (ledger, again):
        book.charge(2.0, 0.25)
    assert again.state_dict() == ledger.state_dict()
    assert again.epsilon(1e-5) == ledger.epsilon(1e-5)


def test_a_budget_survives_a_process_that_forgot_to_ask_for_it() -> None:
    ledger = PrivacyLedger(max_epsilon=5.0, delta=1e-5)
    ledger.charge(1.0, 1.0)
    fresh = PrivacyLedger()
    fresh.load_state_dict(json.loads(ledger.to_json()))
    with pytest.raises(PrivacyBudgetExhausted):
        fresh.charge(1.0, 1.0)


def test_a_state_that_would_forget_releases_is_refused() -> None:
    ledger = PrivacyLedger()
    before = ledger.state_dict()
    ledger.charge(1.0, 1.0)
    with pytest.raises(ValueError, match="would forget some"):
        ledger.load_state_dict(before)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", "null", '{"accountant": "gdp", "max_epsilon": null, "delta": null}'),
        '{"format": 1, "accountant": "prv", "max_epsilon": null, "delta": null, "history": [[1]]}',
        '{"format": 1, "accountant": "prv", "max_epsilon": null, "delta": null,'
        ' "history": [[1, 2, 3]]}',
        '{"format": 2, "accountant": "prv", "max_epsilon": null, "delta": null, "history": []}',
    ],
)
def test_what_is_no_ledger_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"ledger|accountant"):
        PrivacyLedger.from_json(text)


def test_a_budget_needs_both_numbers_and_belongs_to_a_new_ledger() -> None:
    with pytest.raises(ValueError, match="together"):
        PrivacyLedger(max_epsilon=1.0)
    with pytest.raises(ValueError, match="target_delta"):
        private(max_epsilon=1.0)
    with pytest.raises(ValueError, match="where the ledger is made"):
        private(max_epsilon=1.0, target_delta=1e-5, ledger=PrivacyLedger())
