"""What a server gathers over rounds, on real images: digits, and MNIST where it is at hand."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from gradguard.evaluation import Row, Study, evaluate
from gradguard.evaluation.data import Data
from tests.attacks.mnist import images

ROUNDS = [1, 5, 20, 100]
TOP_K = {"KeepTopK": {"ratio": 0.01, "scope": "global"}}


def rows(transform: list[dict[str, Any]], *, mnist: bool = False, **attack: Any) -> list[Row]:
    """Rows by rounds: fresh models, skewed batches of 8, attacks that rehearse nothing."""
    study = Study.from_dict(
        {
            "model": {"name": "cnn-relu"},
            "training": {"steps": 1, "seeds": 1},
            "attack": {
                **{"batch_sizes": [8], "compositions": ["skewed"], "stages": ["init"]},
                **{"rounds": ROUNDS, "trials": 60, "calibration": 30},
                "attackers": ["BiasCount", "LLG", "NegativeColumns"],
            }
            | attack,
            "defense": [{"name": "d", "transform": transform}],
        }
    )
    data = Data("mnist", *images(), num_classes=10) if mnist else None
    report = evaluate(study, data=data)
    assert report.provenance["warnings"] == []
    return list(report.rows)


def shown(found: list[Row]) -> str:
    return ", ".join(f"{row.rounds}: {row.worst_asr:.3f} {row.worst_ci}" for row in found)


@pytest.mark.slow
@pytest.mark.parametrize("mnist", [False, True], ids=["digits", "mnist"])
def test_error_feedback_leaks_over_rounds_what_it_withholds_in_one(mnist: bool) -> None:
    """Seen with LLG, which needs the whole head.

    On an untrained model the biases are among the largest 1 % in the first round already, and
    ``BiasCount`` reads them all.
    """
    found = rows([{"ErrorFeedback": {"transform": [TOP_K]}}], mnist=mnist)
    (undefended,) = rows([], mnist=mnist, rounds=[1])
    (withheld,) = rows([TOP_K], mnist=mnist, rounds=[100])
    assert found[0].attacks["BiasCount"].asr > 0.95
    read = [row.attacks["LLG"] for row in found]
    whole, without = undefended.attacks["LLG"], withheld.attacks["LLG"]
    print([(score.asr, score.ci) for score in (*read, whole, without)])
    assert all(later.asr > earlier.asr for earlier, later in pairwise(read))
    assert read[-1].ci[0] > read[0].ci[1]
    assert read[-1].ci[1] >= whole.ci[0]
    # Without error feedback the hundredth message is the first.
    assert without == read[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "transform", [{"AddGaussian": {"stddev": 0.3}}, {"KeepRandomK": {"ratio": 0.01}}]
)
def test_fresh_randomness_averages_away(transform: dict[str, Any]) -> None:
    found = rows([transform])
    print(shown(found))
    assert all(later.worst_asr >= earlier.worst_ci[0] for earlier, later in pairwise(found))
    assert found[-1].worst_ci[0] > found[0].worst_ci[1]


@pytest.mark.slow
def test_a_client_that_takes_part_now_and_then_leaks_less_and_still_over_rounds() -> None:
    noise = [{"AddGaussian": {"stddev": 0.3}}]
    always = rows(noise, rounds=[100])[0]
    seldom = rows(noise, rounds=[1, 100], participation=0.1)
    print(shown([always]), "seldom", shown(seldom))
    assert seldom[1].worst_ci[0] > seldom[0].worst_ci[1]
    assert always.worst_asr > seldom[1].worst_asr
