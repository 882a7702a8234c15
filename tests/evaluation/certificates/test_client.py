"""The certificate of a client: above what the best attacker reads, and close to it."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import norm
from torch import nn

from gradguard.dp import ClientDP, PrivateUpdateGuard
from gradguard.evaluation.certificates.client import client_bound


@pytest.mark.parametrize(("z", "rounds"), [(1.0, 1), (2.0, 4), (4.0, 1)])
def test_the_optimal_attack_on_real_updates_stays_below_the_bound(z: float, rounds: int) -> None:
    """Two clients that are as different as the clipping norm allows, told apart by the mean."""
    net, dp = nn.Linear(4, 1, bias=False), ClientDP(z, 1.0)
    before = net.state_dict()
    right, trials = 0, 400
    labels = torch.randint(2, (trials,), generator=torch.Generator().manual_seed(3)).tolist()
    for label in labels:
        guard = PrivateUpdateGuard(net, dp)
        change = torch.tensor([[10.0, 0.0, 0.0, 0.0]]) * (1 if label else 0)  # the reference: zero
        after = {"weight": before["weight"] + change}
        seen = sum(float(guard.protect(before, after)["weight"][0, 0]) for _ in range(rounds))
        right += (seen > rounds / 2) == bool(label)
    optimal = float(norm.cdf(rounds**0.5 / (2 * z)))
    error = 4 * (0.25 / trials) ** 0.5
    assert right / trials == pytest.approx(optimal, abs=error)
    assert right / trials <= client_bound(dp, 0.5, rounds) + error


def test_it_grows_with_rounds_and_prior_and_falls_with_noise() -> None:
    bounds = [client_bound(ClientDP(2.0, 1.0), 0.2, rounds) for rounds in (1, 2, 10, 100)]
    assert bounds == sorted(bounds)
    assert (
        client_bound(ClientDP(4.0, 1.0), 0.2, 1)
        < bounds[0]
        < client_bound(ClientDP(2.0, 1.0), 0.3, 1)
    )
    assert client_bound(ClientDP(1e9, 1.0), 0.2, 1) == pytest.approx(0.2, abs=1e-6)
