"""A client whose whole update is private: what it sends, what it books, what it refuses."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from torch import Tensor, nn

from gradguard import ErrorFeedback, Identity, KeepTopK, NonFiniteGradientError
from gradguard.core import Reads
from gradguard.dp import ClientDP, PrivacyBudgetExhausted, PrivacyLedger, PrivateUpdateGuard
from gradguard.dp.gaussian import gaussian_delta, gaussian_mu


def model(width: int = 50) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width))


def moved(net: nn.Module, by: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    before = {k: t.clone() for k, t in net.state_dict().items()}
    after = {k: t + by if t.is_floating_point() else t + 1 for k, t in before.items()}
    return before, after


def parameters(update: dict[str, Tensor]) -> Tensor:
    return torch.cat([update[k].flatten() for k in ("0.weight", "0.bias", "1.weight", "1.bias")])


@pytest.mark.parametrize(("z", "bound"), [(1.0, 0.5), (4.0, 0.1), (0.5, 3.0)])
def test_the_noise_is_the_multiplier_times_the_norm(z: float, bound: float) -> None:
    net = model()
    noise = parameters(PrivateUpdateGuard(net, ClientDP(z, bound)).protect(*moved(net, 0.0)))
    # 2,650 coordinates: 5 standard errors of the deviation are 7 %.
    assert float(noise.std()) == pytest.approx(z * bound, rel=0.07)
    assert abs(float(noise.mean())) < 5 * z * bound / math.sqrt(len(noise))


def test_what_is_under_the_noise_has_at_most_the_norm() -> None:
    net, dp = model(), ClientDP(1e-6, 0.5)
    update = PrivateUpdateGuard(net, dp).protect(*moved(net, 100.0))
    assert float(parameters(update).norm()) == pytest.approx(0.5, rel=1e-3)


def test_buffers_send_zeros_and_do_not_count_toward_the_norm() -> None:
    net = model()
    before, after = moved(net, 0.0)
    after["1.running_var"] += 1e9
    after["0.bias"][0] += 0.25
    update = PrivateUpdateGuard(net, ClientDP(1e-6, 0.5)).protect(before, after)
    assert float(update["0.bias"][0]) == pytest.approx(0.25, rel=1e-3)
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert int(update[name].count_nonzero()) == 0


def test_two_updates_from_one_saved_state_share_no_noise() -> None:
    net = model()
    saved = PrivateUpdateGuard(net, ClientDP(1.0, 1.0)).state_to_arrays()
    sent = []
    for _ in range(2):
        guard = PrivateUpdateGuard(net, ClientDP(1.0, 1.0))
        guard.load_arrays(*saved)
        sent.append(parameters(guard.protect(*moved(net, 1.0))))
    assert abs(float(torch.corrcoef(torch.stack(sent))[0, 1])) < 0.1


def test_no_state_tells_of_noise_that_was_used() -> None:
    net = model()
    guard = PrivateUpdateGuard(net, ClientDP(1.0, 1.0))
    first = guard.protect(*moved(net, 0.0))
    once = guard.state["1:AddGaussian"]["rng"].clone()
    guard.protect(*moved(net, 0.0))
    assert not torch.equal(once, guard.state["1:AddGaussian"]["rng"])
    rng = torch.Generator()
    rng.set_state(once)
    assert not torch.equal(torch.empty(2500).normal_(generator=rng), first["0.weight"].flatten())


def test_every_update_that_is_returned_was_booked_and_one_that_raised_was_not() -> None:
    net = model()
    guard = PrivateUpdateGuard(net, ClientDP(2.0, 1.0))
    for rounds in range(1, 4):
        guard.protect(*moved(net, 1.0))
        assert (guard.ledger.releases, guard.ledger.history) == (rounds, [(2.0, 1.0, rounds)])
        assert guard.epsilon() == pytest.approx(ClientDP(2.0, 1.0).epsilon(rounds))
    with pytest.raises(NonFiniteGradientError):
        guard.protect(*moved(net, float("nan")))
    assert guard.ledger.releases == 3


def test_a_round_above_the_budget_raises_and_changes_nothing() -> None:
    net, dp = model(), ClientDP(2.0, 1.0)
    ledger = PrivacyLedger(max_epsilon=dp.epsilon(2) + 1e-6, delta=dp.delta)
    guard = PrivateUpdateGuard(net, dp, after=ErrorFeedback(KeepTopK(0.1)), ledger=ledger)
    guard.protect(*moved(net, 1.0))
    guard.protect(*moved(net, 1.0))
    kept = guard.state_to_arrays()
    with pytest.raises(PrivacyBudgetExhausted):
        guard.protect(*moved(net, 1.0))
    arrays, text = guard.state_to_arrays()
    assert text == kept[1]
    assert all((arrays[name] == kept[0][name]).all() for name in arrays)


@pytest.mark.parametrize("rounds", [1, 10, 100])
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0, 50.0])
def test_the_noise_for_a_budget_spends_it_and_no_more(epsilon: float, rounds: int) -> None:
    dp = ClientDP.for_budget(epsilon, rounds=rounds, max_update_norm=1.0)
    assert epsilon * (1 - 1e-6) <= dp.epsilon(rounds) <= epsilon
    assert dp.epsilon(rounds + 1) > epsilon
    # Slow and from the definition: the tail of the normal distribution, shifted by mu.
    mu = math.sqrt(rounds) / dp.noise_multiplier
    delta = norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)
    assert delta == pytest.approx(dp.delta, rel=1e-4)


@given(epsilon=st.floats(0.01, 100), exponent=st.integers(2, 10))
def test_the_calibrated_mu_has_the_delta_asked_for(epsilon: float, exponent: int) -> None:
    mu = gaussian_mu(epsilon, 10.0**-exponent)
    assert gaussian_delta(mu, epsilon) == pytest.approx(10.0**-exponent, rel=1e-6)


def test_the_gaussian_mechanism_of_the_textbook_would_need_more_noise() -> None:
    """sigma = sqrt(2 ln(1.25 / delta)) / epsilon, proven for epsilon below 1 only."""
    classic = math.sqrt(2 * math.log(1.25 / 1e-5)) / 0.9
    assert ClientDP.for_budget(0.9, rounds=1, max_update_norm=1.0).noise_multiplier < classic


@dataclass(frozen=True)
class ReadsRaw(Identity):
    reads: ClassVar[Reads] = "raw_sum"


def test_what_reads_the_update_from_before_the_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="raw_sum"):
        PrivateUpdateGuard(model(), ClientDP(1.0, 1.0), after=ReadsRaw())


def test_error_feedback_after_the_noise_remembers_noised_numbers_alone() -> None:
    net, dp = model(), ClientDP(1.0, 1.0)
    guard = PrivateUpdateGuard(net, dp, after=ErrorFeedback(KeepTopK(0.1)))
    update = guard.protect(*moved(net, 0.0))
    memory = guard.state["2:ErrorFeedback"]["memory"]
    held = torch.cat([m.flatten() for m in memory]) + parameters(update)
    assert float(held.std()) == pytest.approx(1.0, rel=0.1)  # nothing but noise went in


def test_a_run_with_a_given_seed_has_no_finite_epsilon() -> None:
    net = model()
    guard = PrivateUpdateGuard(net, ClientDP(1.0, 1.0))
    guard.protect(*moved(net, 0.0))
    guard.reset(seed=5)
    one = parameters(guard.protect(*moved(net, 0.0)))
    assert guard.epsilon() == math.inf
    other = PrivateUpdateGuard(net, ClientDP(1.0, 1.0))
    other.reset(seed=5)
    assert torch.equal(one, parameters(other.protect(*moved(net, 0.0))))
    again = PrivateUpdateGuard(net, ClientDP(1.0, 1.0))
    again.load_arrays(*other.state_to_arrays())
    again.protect(*moved(net, 0.0))
    assert again.epsilon() == math.inf


def test_the_ledger_goes_on_in_another_process_and_forgets_nothing() -> None:
    net, dp = model(), ClientDP(1.0, 1.0)
    guard = PrivateUpdateGuard(net, dp)
    guard.protect(*moved(net, 1.0))
    old = guard.state_to_arrays()
    guard.protect(*moved(net, 1.0))
    fresh = PrivateUpdateGuard(net, dp)
    fresh.load_arrays(*guard.state_to_arrays())
    assert fresh.ledger.releases == 2
    with pytest.raises(ValueError, match="would forget some"):
        fresh.load_arrays(*old)
    assert fresh.ledger.releases == 2


@pytest.mark.parametrize("change", ["", "[]", "{}", "version", "simulated", "ledger", "state"])
def test_a_state_that_was_changed_on_its_way_is_refused(change: str) -> None:
    net = model()
    guard = PrivateUpdateGuard(net, ClientDP(1.0, 1.0))
    arrays, text = guard.state_to_arrays()
    wrong = {"version": {"client_dp": 2}, "simulated": {"simulated": 0}, "ledger": {"ledger": "{}"}}
    held = json.loads(text) | wrong.get(change, {"state": "{}"})
    text = json.dumps(held) if change in (*wrong, "state") else change
    with pytest.raises(ValueError, match="state"):
        guard.load_arrays(arrays, text)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf"), True, "1"])
def test_noise_and_norm_out_of_range_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="must be a finite number above 0"):
        ClientDP(bad, 1.0)
    with pytest.raises(ValueError, match="must be a finite number above 0"):
        ClientDP(1.0, bad)
    with pytest.raises(ValueError, match="epsilon must be"):
        ClientDP.for_budget(bad, rounds=1, max_update_norm=1.0)


def test_rounds_and_delta_out_of_range_are_refused() -> None:
    for rounds in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="rounds must be"):
            ClientDP.for_budget(1.0, rounds=rounds, max_update_norm=1.0)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="rounds must be"):
            ClientDP(1.0, 1.0).epsilon(rounds)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="epsilon must be at most 500"):
        ClientDP.for_budget(1000.0, rounds=1, max_update_norm=1.0)
    for delta in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="delta must be"):
            ClientDP(1.0, 1.0, delta=delta)
