"""The audit flags every broken pipeline here and no correct one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gradguard import DPSGD, Defense, KeepTopK, Quantize, Sign, Ternary
from gradguard.core import GradTransform
from gradguard.evaluation.auditing.canaries import Canary, check_neighbours
from gradguard.evaluation.auditing.engine import (
    ADJACENCY,
    AuditResult,
    audit_client,
    audit_sampler,
)
from gradguard.evaluation.auditing.one_run import audit_one_run
from tests.evaluation import broken_pipelines as broken

INPUTS = torch.tensor(
    [[0.0, 0.0, 0.0, 4.0], [3.0, 0.0, 0.0, 0.0], [0.0, 3.0, 0.0, 0.0], [0.0, 0.0, 0.5, 0.0]]
)
LABELS = torch.tensor([0, 1, 0, 1])
FLIPPED = torch.tensor([1, 1, 0, 1])
NEIGHBOURS = {"add-remove": (INPUTS[1:], LABELS[1:]), "label-flip": (INPUTS, FLIPPED)}


def audit(client: Any, z: float, *, canary: Canary = "add-remove", **options: Any) -> AuditResult:
    rounds = options.get("rounds", 1)
    mu = (1 if canary == "add-remove" else 2) * rounds**0.5 / z
    settings: dict[str, Any] = {"draws": 1000, "alpha": 1e-3, "seed": 0, "claim_mu": mu}
    return audit_client(
        client, (INPUTS, LABELS), NEIGHBOURS[canary], canary=canary, **(settings | options)
    )


def small(kind: type[broken.Correct], z: float = 1.0, seed: int = 0) -> broken.Correct:
    return kind(broken.Small(), noise_multiplier=z, seed=seed)


def guarded(z: float, transform: Any = (), **options: Any) -> Any:
    dp = DPSGD(z, options.pop("norm", 1.0), **options)
    defense = Defense("dp", transform=transform, dp=dp)
    return defense.client(broken.Small().head, batch_size=4, seed=0)


BROKEN = [
    broken.NoiseDividedByBatchSize,
    broken.FixedNoiseSeed,
    broken.SharedNoiseSeed,
    broken.NotClipped,
    broken.MaskFromRawGradient,
    broken.NoNoiseOnScalars,
    broken.NotANumberForLongGradients,
]


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_the_audit_flags(kind: type[broken.Correct]) -> None:
    assert audit(small(kind), 1.0).flagged


@pytest.mark.slow
def test_the_audit_flags_raw_error_feedback_over_ten_rounds() -> None:
    found = audit(small(broken.RawErrorFeedback, 4.0), 4.0, rounds=10, draws=2000)
    assert found.flagged
    # Ten rounds at z = 4 leak T / z = 2.5 in place of sqrt(T) / z = 0.79.
    assert found.mu_lower is not None
    assert 2.0 < found.mu_lower <= 2.5


@pytest.mark.slow
def test_noised_error_feedback_over_ten_rounds_is_not_flagged() -> None:
    found = audit(small(broken.NoisedErrorFeedback, 4.0), 4.0, rounds=10, draws=2000)
    assert not found.flagged
    assert found.mu_lower is not None
    assert found.mu_lower > 0.4


@pytest.mark.parametrize("canary", ["add-remove", "label-flip"])
@pytest.mark.parametrize("z", [0.5, 2.0])
def test_a_correct_pipeline_is_not_flagged_and_its_loss_is_seen(z: float, canary: Canary) -> None:
    found = audit(small(broken.Correct, z), z, canary=canary)
    assert not found.flagged
    assert found.adjacency == ADJACENCY[canary]
    assert found.mu_lower is not None
    assert found.claim_mu is not None
    assert found.mu_lower > 0.8 * found.claim_mu - 0.3


def test_a_label_flip_held_against_the_add_remove_claim_would_be_a_false_alarm() -> None:
    assert audit(small(broken.Correct), 1.0, canary="label-flip", claim_mu=1.0).flagged


CHAINS: dict[str, list[GradTransform]] = {
    "plain": [],
    "top-k": [KeepTopK(0.3)],
    "4-bit": [Quantize(4)],
    "2-bit": [Quantize(2)],
    "sign": [Sign()],
    "ternary": [Ternary()],
    "top-k then sign": [KeepTopK(0.5, scope="tensor"), Sign()],
}


@pytest.mark.parametrize("name", sorted(CHAINS))
@pytest.mark.parametrize("canary", ["add-remove", "label-flip"])
def test_post_processing_never_raises_the_audited_value_above_the_claim(
    name: str, canary: Canary
) -> None:
    found = audit(guarded(1.0, CHAINS[name]), 1.0, canary=canary)
    assert not found.flagged
    assert found.mu_lower is not None
    # It is the real pipeline that is read: something is found in every message.
    assert found.mu_lower > 0.1


def test_per_layer_clipping_has_its_joint_radius() -> None:
    found = audit(guarded(1.0, norm=(0.8, 0.6)), 1.0, draws=3000)
    assert not found.flagged
    assert found.mu_lower is not None
    assert found.mu_lower > 0.5


def test_ghost_clipping_through_the_real_criterion_is_not_flagged() -> None:
    found = audit(guarded(1.0, mode="ghost"), 1.0)
    assert not found.flagged
    assert found.mu_lower is not None
    assert found.mu_lower > 0.5


@pytest.mark.slow
def test_the_lower_bound_at_z_1_is_at_least_4_of_the_true_4_377() -> None:
    found = audit(guarded(1.0), 1.0, draws=20_000, alpha=0.05)
    assert found.statistic.startswith("projection")
    assert 4.0 <= found.epsilon_lower <= 4.3772
    assert found.claim_epsilon == pytest.approx(4.377178, abs=1e-6)


def gaussian(seed: int, mu: float) -> Any:
    """Messages of a Gaussian mechanism with a canary of length ``mu`` standard deviations."""
    rng = np.random.default_rng(seed)
    direction = np.full(8, mu / 8**0.5)

    def sample(canary_in: bool, count: int) -> NDArray[np.float64]:
        return np.asarray(rng.standard_normal((count, 8)) + canary_in * direction)

    return sample, direction


@pytest.mark.slow
def test_the_bound_never_exceeds_the_claim_over_200_runs() -> None:
    options: dict[str, Any] = {"canary": "add-remove", "alpha": 1e-3, "delta": 1e-5}
    for seed in range(190):
        mu = (0.25, 0.5, 1.0, 2.0)[seed % 4]
        sample, direction = gaussian(seed, mu)
        sizes = {"a": 5, "b": 3}
        found = audit_sampler(
            sample, direction, sizes=sizes, claim_mu=mu, draws=2000, seed=seed, **options
        )
        assert not found.flagged
        assert found.mu_lower is not None
        assert found.mu_lower > mu - 0.5
    for seed in range(10):
        defense = Defense("dp", transform=[], dp=DPSGD(1.0, 1.0))
        client = defense.client(broken.Small().head, batch_size=4, seed=seed)
        assert not audit(client, 1.0, seed=seed).flagged


def test_a_sampler_of_twice_the_claim_is_flagged() -> None:
    sample, direction = gaussian(0, 2.0)
    options: dict[str, Any] = {"canary": "add-remove", "alpha": 1e-3, "delta": 1e-5}
    assert audit_sampler(
        sample, direction, sizes={"a": 8}, claim_mu=1.0, draws=1000, seed=0, **options
    ).flagged


def test_a_claimed_curve_is_tested_as_such() -> None:
    client = small(broken.Correct)
    perfect = audit(client, 1.0, claim_mu=None, claim=lambda rate: 1 - rate)
    assert perfect.flagged
    assert perfect.mu_lower is None
    assert not audit(client, 1.0, claim_mu=None, claim=lambda rate: 0.0).flagged


def test_the_same_seeds_give_the_same_result() -> None:
    first, second = (audit(small(broken.Correct), 1.0) for _ in range(2))
    assert first == second
    assert first.to_dict()["flagged"] is False


def test_batches_that_are_no_neighbours_are_refused() -> None:
    batch = (INPUTS, LABELS)
    check_neighbours(batch, NEIGHBOURS["add-remove"], "add-remove")
    check_neighbours(batch, NEIGHBOURS["label-flip"], "label-flip")
    for other, canary in (
        (NEIGHBOURS["label-flip"], "add-remove"),
        (NEIGHBOURS["add-remove"], "label-flip"),
        (batch, "label-flip"),
        ((INPUTS[2:], LABELS[2:]), "add-remove"),
    ):
        with pytest.raises(ValueError, match="needs"):
            check_neighbours(batch, other, canary)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="canary must be"):
        check_neighbours(batch, batch, "other")  # type: ignore[arg-type]


def test_impossible_settings_are_refused() -> None:
    client = small(broken.Correct)
    for options, words in (
        ({"claim_mu": None}, "either"),
        ({"claim_mu": float("nan")}, "positive"),
        ({"draws": 10}, "draws must be"),
        ({"rounds": 0, "claim_mu": 1.0}, "rounds must be"),
        ({"alpha": 0.0}, "alpha must be"),
    ):
        with pytest.raises(ValueError, match=words):
            audit(client, 1.0, **options)


def test_one_run_finds_something_and_not_more_than_the_claim() -> None:
    found = audit_one_run(Defense("dp", transform=[], dp=DPSGD(0.5, 1.0)), seed=0)
    assert 1.0 < found.epsilon_lower < found.claim_epsilon
    assert not found.flagged
    assert found.to_dict()["canaries"] == 1000


def test_one_run_refuses_what_it_cannot_audit() -> None:
    with pytest.raises(ValueError, match="no DP"):
        audit_one_run(Defense("none", transform=[]), seed=0)
    with pytest.raises(ValueError, match="guesses"):
        audit_one_run(Defense("dp", transform=[], dp=DPSGD(1.0, 1.0)), canaries=10, seed=0)
