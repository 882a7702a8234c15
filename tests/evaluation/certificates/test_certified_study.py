"""A study with DP-SGD, from beginning to end: rows, certificates and what is said of them."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from gradguard import DPSGD, Defense
from gradguard.evaluation import Report, Study, evaluate
from gradguard.evaluation.certificates.certify import run_epsilon
from gradguard.evaluation.certificates.law import broken_certificates
from gradguard.evaluation.certificates.record import multiset_bound, per_record_bound
from gradguard.evaluation.errors import UnusableInputError
from gradguard.evaluation.progress import Silent
from gradguard.evaluation.running import assemble
from gradguard.evaluation.running.bench import Cell, prepare
from gradguard.evaluation.running.cell import attack_cell
from gradguard.evaluation.running.rows import guarantees
from gradguard.evaluation.running.units import cells
from gradguard.finite import NonFiniteExampleError
from tests.evaluation.examples import study_with

NOISE = {"noise_multiplier": 8.0, "max_grad_norm": 1.0}
TABLE = study_with(
    attack={"compositions": ["iid", "single"]},
    defense=[
        {"name": "none", "transform": []},
        {"name": "DP-SGD", "dp": NOISE, "transform": []},
        {"name": "DP-SGD, sign", "dp": NOISE, "transform": ["Sign"]},
    ],
)


@pytest.fixture(scope="module")
def private() -> Report:
    return evaluate(Study.from_dict(TABLE))


def test_only_rows_with_dp_have_epsilon_delta_and_certificate(private: Report) -> None:
    for row in private.rows:
        fields = (row.epsilon, row.delta, row.certificate)
        if row.defense == "none":
            assert fields == (None, None, None)
        else:
            assert None not in fields
            assert row.delta == 1e-5


def test_the_certificate_is_for_the_labels_that_batches_are_drawn_from(private: Report) -> None:
    study = Study.from_dict(TABLE)
    bench = prepare(study)
    labels = bench.data.labels.numpy()[bench.parts.scored]
    prior = np.bincount(labels, minlength=10) / len(labels)
    row = next(r for r in private.rows if r.certificate and r.composition == "iid")
    assert row.certificate is not None
    assert row.certificate["value"] == per_record_bound(float(prior.max()), 8.0)
    # Every attack there is stays below it; the best of both bounds may be tighter.
    assert row.certificate["multiset"]["value"] <= multiset_bound(4, prior, 8.0)
    steps = len(bench.parts.client) // study.training.batch_size
    assert row.epsilon == run_epsilon(study.defenses[1].dp, 4, 1 / steps)  # type: ignore[arg-type]
    assert row.certificate["run"]["sample_rate"] == 1 / steps


def test_what_is_done_after_the_noise_changes_no_certificate(private: Report) -> None:
    found = {(r.defense, r.composition): (r.epsilon, r.certificate) for r in private.rows}
    for composition in ("iid", "single"):
        assert found["DP-SGD", composition] == found["DP-SGD, sign", composition]


def test_no_attack_of_a_real_study_exceeds_a_certificate(private: Report) -> None:
    assert broken_certificates(private.rows) == []
    assert private.provenance["certificates"].startswith("no attack exceeds a certificate")
    assert Report.from_json(private.to_json()) == private


def test_the_certificate_and_epsilon_of_several_rounds_count_all_of_them() -> None:
    bench = prepare(Study.from_dict(TABLE))
    strong = Defense("strong", transform=[], dp=DPSGD(noise_multiplier=8.0, max_grad_norm=1.0))
    once, pooled = (guarantees(bench, Cell("init", "iid", 4, n), strong) for n in (1, 100))
    assert once["certificate"]["multiset"]["value"] < pooled["certificate"]["multiset"]["value"]
    assert pooled["certificate"]["releases"] == 100
    assert pooled["epsilon"] >= pooled["certificate"]["epsilon_add_remove"] > once["epsilon"]


def test_noise_that_is_claimed_and_not_drawn_breaks_the_certificate(private: Report) -> None:
    bench = prepare(Study.from_dict(TABLE))
    strong = Defense("strong", transform=[], dp=DPSGD(noise_multiplier=1e3, max_grad_norm=1.0))
    claimed = guarantees(bench, Cell("init", "iid", 4), strong)
    silent = next(r for r in private.rows if r.defense == "none" and r.composition == "iid")
    (sentence, *_) = broken_certificates([replace(silent, **claimed)])
    assert "LLG reads" in sentence
    assert "the certificate is broken" in sentence


def test_an_attack_above_a_certificate_is_a_warning_in_the_report(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A fault put in on purpose: every row claims noise that nobody draws.
    strong = Defense("strong", transform=[], dp=DPSGD(noise_multiplier=1e3, max_grad_norm=1.0))
    claim = partial(guarantees, defense=strong)
    monkeypatch.setattr(assemble, "guarantees", lambda bench, cell, _: claim(bench, cell))
    found = evaluate(Study.from_dict(study_with(attack={"compositions": ["iid"]})))
    assert any("the certificate is broken" in warning for warning in found.provenance["warnings"])
    assert "exceed it" in found.provenance["certificates"]


def with_dp(**changes: object) -> Study:
    return Study.from_dict(
        TABLE | {"defense": [{"name": "private", "dp": NOISE | changes, "transform": []}]}
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"max_grad_norm": [1.0, 2.0]}, "expected one max_grad_norm for each of"),
        ({"noise_multiplier": 1e300}, "NaN or infinity"),
        ({"max_grad_norm": 1e300}, "NaN or infinity"),
    ],
)
def test_dp_that_cannot_run_on_the_model_is_refused_before_any_work(
    changes: dict[str, object], reason: str
) -> None:
    with pytest.raises(UnusableInputError, match=f"defence 'private': .*{reason}"):
        prepare(with_dp(**changes))


def test_an_example_whose_gradient_is_not_finite_names_the_defence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise NonFiniteExampleError("an example has a gradient that is not finite")

    bench = prepare(with_dp())
    monkeypatch.setattr("gradguard.dp.client.PrivateClient.gradients", fails)
    with pytest.raises(UnusableInputError, match=r"'private' cannot be attacked .* not finite"):
        attack_cell(bench, Cell("init", "iid", 4), bench.study.defenses[0], Silent())


def test_the_run_counts_the_labels_of_all_that_clients_hold() -> None:
    bench = prepare(with_dp())
    # Scored images are a quarter of them, and here have lost all but two classes.
    labels = bench.data.labels.numpy()
    scored = bench.parts.scored[labels[bench.parts.scored] < 2]
    uneven = replace(bench, parts=replace(bench.parts, scored=scored))
    found = guarantees(uneven, Cell("init", "iid", 4), bench.study.defenses[0])["certificate"]
    of_all = labels[uneven.parts.client]
    assert found["kappa"] == np.bincount(labels[scored]).max() / len(scored)
    assert found["run"]["kappa"] == np.bincount(of_all).max() / len(of_all)


def test_an_unbounded_epsilon_is_text_in_the_report(private: Report) -> None:
    first = next(row for row in private.rows if row.certificate is not None)
    assert first.certificate is not None
    unbounded = replace(first, certificate=first.certificate | {"epsilon_add_remove": math.inf})
    read = Report.from_json(replace(private, rows=(unbounded,)).to_json())
    assert read.rows[0].certificate is not None
    assert read.rows[0].certificate["epsilon_add_remove"] == "inf"


def test_a_delta_that_is_too_large_for_the_clients_data_is_a_warning() -> None:
    table = TABLE | {"attack": TABLE["attack"] | {"compositions": ["iid"]}}
    defense = [{"name": "private", "dp": NOISE | {"delta": 0.5}, "transform": []}]
    report = evaluate(Study.from_dict(table | {"defense": defense}))
    assert any("delta 0.5 of 'private'" in said for said in report.provenance["warnings"])


def test_a_cohort_counts_every_pass_over_the_data_and_no_amplification() -> None:
    """Sixteen clients use sixteen times the records: an epsilon as if one did is too small."""
    plain = Study.from_dict(
        {
            "training": {"steps": 100, "batch_size": 16, "seeds": 1},
            "defense": [
                {"name": f"{k}", "cohort": k, "dp": {"noise_multiplier": 1.0, "max_grad_norm": 1.0}}
                for k in (1, 16)
            ],
        }
    )
    bench = prepare(plain)
    cell = cells(plain)[0]
    one, sixteen = (guarantees(bench, cell, defense) for defense in plain.defenses)
    passes = math.ceil(16 * 100 / (len(bench.parts.client) // 16))
    expected = run_epsilon(DPSGD(1.0, 1.0), passes, 1.0)
    assert sixteen["epsilon"] == pytest.approx(expected)
    assert sixteen["epsilon"] > one["epsilon"]
