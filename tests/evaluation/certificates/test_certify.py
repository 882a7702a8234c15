from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr

from gradguard import DPSGD
from gradguard.attacks.composition import draw_counts
from gradguard.evaluation.certificates.certify import certify, expected_blind, run_epsilon
from gradguard.evaluation.certificates.record import (
    best_constant_asr,
    gaussian_epsilon,
    group_bound,
    multiset_bound,
    per_record_bound,
)

TEN = [0.1] * 10
FACTS = {"label_prior": TEN, "training_releases": 50, "sample_rate": 0.1}
DEPENDENT = ("skewed", "single", "dirichlet:0.1", "dirichlet:5")


def dp(noise: float, **changes: object) -> DPSGD:
    return DPSGD(**({"noise_multiplier": noise, "max_grad_norm": 1.0} | changes))  # type: ignore[arg-type]


def found(noise: float, composition: str, batch: int = 8, **changes: object) -> dict[str, object]:
    facts = FACTS | changes
    return certify(dp(noise), composition=composition, batch_size=batch, **facts)  # type: ignore[arg-type]


def test_independent_labels_get_the_bounds_of_one_record_and_of_the_multiset() -> None:
    prior = [0.4] + [0.1] * 6
    certificate = found(4.0, "iid", label_prior=prior)
    assert certificate["value"] == per_record_bound(0.4, 4.0)
    assert certificate["formula"] == "R1"
    assert certificate["kappa"] == 0.4
    assert "largest share of a class" in str(certificate["kappa_source"])
    assert certificate["multiset"] == {
        "value": multiset_bound(8, prior, 4.0),
        "formula": "M1",
        "blind": best_constant_asr(8, prior),
    }


@pytest.mark.parametrize("composition", DEPENDENT)
def test_with_dependent_labels_no_bound_is_used_that_needs_independent_ones(
    composition: str,
) -> None:
    certificate = found(4.0, composition)
    blind = expected_blind(composition, batch_size=8, label_prior=TEN)
    assert certificate["value"] == group_bound(0.1, 8, 4.0)
    assert certificate["formula"] == "R1, group of B"
    assert certificate["multiset"] == {
        "value": group_bound(blind, 8, 4.0),
        "formula": "R1 of the blind score, group of B",
        "blind": blind,
    }


def test_a_batch_of_one_is_certified_as_one_record_whatever_the_composition() -> None:
    for composition in ("iid", *DEPENDENT):
        certificate = found(1.0, composition, 1)
        assert certificate["value"] == pytest.approx(per_record_bound(0.1, 1.0))
        multiset = certificate["multiset"]
        assert isinstance(multiset, dict)
        assert multiset["value"] == pytest.approx(per_record_bound(0.1, 1.0))


@given(blind=st.floats(0.001, 0.999), noise=st.floats(0.1, 100), batch=st.integers(1, 64))
def test_the_group_bound_of_a_score_is_never_above_the_total_variation_bound(
    blind: float, noise: float, batch: int
) -> None:
    variation = 2 * float(ndtr(batch / (2 * noise))) - 1
    assert group_bound(blind, batch, noise) <= min(1.0, blind + variation) + 1e-12


@pytest.mark.parametrize("composition", ["iid", *DEPENDENT])
@pytest.mark.parametrize(("classes", "batch"), [(10, 8), (2, 5), (4, 33), (1, 3), (3, 1)])
def test_the_blind_score_is_that_of_simulated_batches(
    composition: str, classes: int, batch: int
) -> None:
    rng = np.random.default_rng(0)
    counts = np.stack([draw_counts(composition, classes, batch, rng) for _ in range(8000)])
    # Symmetric in the classes: an even guess is the best one unless spreading is punished, so
    # the greedy choice is repeated here on the simulated tails.
    tails = np.array([(counts >= m).mean() for m in range(1, batch + 1)])
    best = np.sort(np.tile(tails, classes))[::-1][:batch].sum() / batch
    exact = expected_blind(composition, batch_size=batch, label_prior=[1 / classes] * classes)
    assert exact == pytest.approx(best, abs=0.01)


def test_the_blind_score_rises_with_the_concentration_from_equal_to_independent_labels() -> None:
    found = [
        expected_blind(f"dirichlet:{concentration}", batch_size=32, label_prior=TEN)
        for concentration in (1e-300, 1e-9, 0.01, 1.0, 1e3, 9e3, 1.1e4, 1e9, 1e200)
    ]
    assert found == sorted(found)
    assert found[0] == pytest.approx(0.1)
    assert found[-1] == best_constant_asr(32, TEN)
    assert found[-1] - found[4] < 1e-3


def test_the_run_is_certified_with_amplification_and_without() -> None:
    run = found(4.0, "iid")["run"]
    assert isinstance(run, dict)
    assert run["value"] == per_record_bound(0.1, 4.0, 50, 0.1)
    assert run["unamplified"] == per_record_bound(0.1, 4.0, 50)
    assert (run["formula"], run["mode"], run["releases"]) == ("R3", "amplified", 50)
    assert "secret coins" in run["assumes"]
    whole = found(4.0, "iid", sample_rate=1.0)["run"]
    assert isinstance(whole, dict)
    assert (whole["formula"], whole["mode"]) == ("R2", "run")
    assert whole["value"] == whole["unamplified"] == run["unamplified"]
    assert "coins" not in whole["assumes"]


def test_a_certificate_is_plain_json_and_names_what_it_leaves_out() -> None:
    for noise in (1e-3, 0.5, 1e6):
        for composition in ("iid", *DEPENDENT):
            certificate = found(noise, composition, training_releases=3)
            assert json.loads(json.dumps(certificate, allow_nan=False)) == certificate
    outside = " ".join(found(1.0, "iid")["outside"])  # type: ignore[arg-type]
    for named in ("losses", "example counts", "BatchNorm", "clipping norm", "floating-point",
                  "same noise", "shuffled"):  # fmt: skip
        assert named in outside


def test_settings_and_both_adjacencies_are_in_the_certificate() -> None:
    per_layer = dp(2.0, max_grad_norm=(3.0, 4.0))
    certificate = certify(per_layer, composition="iid", batch_size=8, **FACTS)  # type: ignore[arg-type]
    assert certificate["max_grad_norm"] == [3.0, 4.0]
    assert certificate["noise_multiplier"] == 2.0
    assert (certificate["mode"], certificate["adjacency"]) == ("release", "add-remove")
    assert (certificate["releases"], certificate["sample_rate"]) == (1, 1.0)
    assert certificate["epsilon_replace_one"] == gaussian_epsilon(2.0, 1e-5, 1, "replace-one")


def test_the_epsilon_of_a_run_is_that_of_the_accountant() -> None:
    assert run_epsilon(dp(1.0), 1, 1.0) == pytest.approx(4.377178, abs=1e-6)
    assert run_epsilon(dp(2.0), 10, 1.0) == pytest.approx(7.511276, abs=1e-6)
    # dp-accounting 0.6: 2.854519; the accountant of Opacus adds its error of 0.01.
    assert 0 <= run_epsilon(dp(1.0), 10, 0.1) - 2.854519 <= 0.011
    assert run_epsilon(dp(1.0, accountant="rdp"), 10, 0.1) > 2.854519
    for accountant in ("prv", "rdp"):  # Opacus warns of this much noise; nothing is wrong
        assert 0 <= run_epsilon(dp(50.0, accountant=accountant), 4, 0.1) < 0.2


def test_unusable_conditions_are_refused() -> None:
    for changes, named in (
        ({"training_releases": 0}, "training_releases"),
        ({"sample_rate": 1.5}, "sample_rate"),
        ({"label_prior": [0.5, 0.2]}, "label_prior"),
    ):
        with pytest.raises(ValueError, match=named):
            found(1.0, "iid", **changes)
    with pytest.raises(ValueError, match="batch_size"):
        found(1.0, "iid", 0)
    with pytest.raises(ValueError, match="composition must be one of"):
        found(1.0, "unheard-of")
    with pytest.raises(ValueError, match="sample_rate"):
        run_epsilon(dp(1.0), 10, 0.0)


def test_an_attacker_of_equal_labels_beats_the_bound_of_one_record_but_not_of_the_group() -> None:
    classes, batch, noise, draws = 2, 8, 4.0, 40_000
    rng = np.random.default_rng(0)
    labels = rng.integers(classes, size=draws)
    # Two classes with opposite gradients of the clipping norm: the worst case for one direction.
    seen = batch * (2 * labels - 1) + noise * rng.standard_normal(draws)
    right = float(((seen > 0) == labels).mean())
    slack = 3.3 * np.sqrt(right * (1 - right) / draws)
    certificate = certify(
        dp(noise),
        composition="single",
        batch_size=batch,
        label_prior=[0.5, 0.5],
        training_releases=1,
        sample_rate=1.0,
    )
    assert right - slack > per_record_bound(0.5, noise)  # not valid for dependent labels
    assert right - slack > multiset_bound(batch, [0.5, 0.5], noise)  # neither is this
    assert right - slack <= certificate["value"]
    assert right - slack <= certificate["multiset"]["value"]
    assert right == pytest.approx(certificate["value"], abs=0.005)  # and no bound is closer


def test_independent_labels_are_not_read_beyond_the_multiset_bound() -> None:
    classes, batch, noise, draws = 2, 8, 2.0, 40_000
    rng = np.random.default_rng(1)
    labels = rng.integers(classes, size=(draws, batch))
    ones = labels.sum(axis=1)
    seen = (2 * ones - batch) + noise * rng.standard_normal(draws)
    # The posterior mean of the count, rounded: close to the best guess for this score.
    levels = np.arange(batch + 1)
    log_prior = np.log([float(v) for v in np.bincount(ones, minlength=batch + 1) + 1])
    log_likelihood = -((seen[:, None] - (2 * levels - batch)) ** 2) / (2 * noise**2)
    weights = np.exp(log_likelihood + log_prior)
    guess = np.rint((weights @ levels) / weights.sum(axis=1))
    asr = 1 - np.abs(guess - ones) / batch
    bound = found(noise, "iid", batch, label_prior=[0.5, 0.5])["multiset"]
    assert isinstance(bound, dict)
    half = 3.3 * float(asr.std()) / np.sqrt(draws)
    assert bound["blind"] < float(asr.mean()) - half
    assert float(asr.mean()) - half <= bound["value"]


def test_the_run_is_certified_for_the_records_that_are_trained_on() -> None:
    certificate = found(4.0, "iid", run_prior=[0.3, 0.7], label_prior=[0.4, 0.6])
    assert certificate["kappa"] == 0.6
    assert certificate["run"]["kappa"] == 0.7  # type: ignore[index]
    assert certificate["run"]["unamplified"] == per_record_bound(0.7, 4.0, 50)  # type: ignore[index]


@pytest.mark.parametrize("noise", [1e-300, 1e-155, 1e-20, 1e-9])
@pytest.mark.parametrize("rate", [0.1, 1.0])
def test_next_to_no_noise_has_an_unbounded_epsilon_and_no_crash(noise: float, rate: float) -> None:
    certificate = found(noise, "iid", sample_rate=rate)
    assert certificate["value"] == 1.0
    assert certificate["epsilon_add_remove"] == certificate["epsilon_replace_one"] == float("inf")
    assert run_epsilon(dp(noise), 50, rate) == float("inf")


@pytest.mark.parametrize("composition", ["iid", "skewed"])
def test_many_releases_of_a_batch_are_certified_as_one_with_less_noise(composition: str) -> None:
    pooled, once = found(8.0, composition, releases=16), found(2.0, composition)
    assert pooled["value"] == pytest.approx(once["value"])
    assert pooled["multiset"]["value"] == pytest.approx(once["multiset"]["value"])  # type: ignore[index]
    for name in ("epsilon_add_remove", "epsilon_replace_one"):
        assert pooled[name] == pytest.approx(once[name])
    # What speaks of the training run does not depend on the rounds that are attacked.
    assert pooled["run"] == found(8.0, composition)["run"]
    assert (pooled["releases"], pooled["noise_multiplier"]) == (16, 8.0)
    with pytest.raises(ValueError, match="releases"):
        found(8.0, composition, releases=0)
