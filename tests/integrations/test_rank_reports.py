from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from gradguard import AddGaussian, NonFiniteGradientError, chain
from gradguard.integrations.rank_reports import (
    FAILED,
    NON_FINITE,
    READY,
    RankReport,
    fingerprint,
    overflow_in,
    problem_in,
    status_of,
    stream_fingerprint,
)

STATUSES = st.sampled_from([READY, NON_FINITE, FAILED])


def _all_with(*statuses: int) -> list[RankReport]:
    return [RankReport(status, 7, 100 + rank) for rank, status in enumerate(statuses)]


@given(st.lists(STATUSES, min_size=1, max_size=5))
def test_nothing_is_averaged_unless_every_rank_is_ready(statuses: list[int]) -> None:
    assert (problem_in(_all_with(*statuses)) is None) is (set(statuses) == {READY})


def test_the_ranks_that_failed_are_named() -> None:
    told = problem_in(_all_with(READY, FAILED, READY, FAILED))
    assert told is not None
    assert told.startswith("ranks 1, 3 of 4 failed")
    told = problem_in(_all_with(FAILED, READY, NON_FINITE))
    assert told is not None
    assert told.startswith("rank 2 of 3 saw NaN or infinity")


def test_only_overflow_alone_is_a_step_to_skip() -> None:
    assert overflow_in(_all_with(READY, NON_FINITE))
    assert not overflow_in(_all_with(READY, READY))
    assert not overflow_in(_all_with(FAILED, NON_FINITE))


def test_ranks_that_disagree_are_refused() -> None:
    told = problem_in([RankReport(READY, 1, 0), RankReport(READY, 2, 0)])
    assert told is not None
    assert "disagree" in told


def test_no_streams_at_all_are_not_taken_for_equal_ones() -> None:
    assert problem_in([RankReport(READY, 1, 0)] * 3) is None
    told = problem_in([RankReport(READY, 1, s) for s in (5, 6, 5)])
    assert told is not None
    assert told.startswith("ranks 0, 2 of 3 have the same random streams")


def test_a_fingerprint_keeps_its_parts_apart() -> None:
    assert fingerprint(b"ab", b"c") != fingerprint(b"a", b"bc")
    assert 0 < fingerprint() < 2**63


def test_streams_are_found_however_deep_and_tell_two_ranks_apart() -> None:
    noise = chain(AddGaussian(1.0), AddGaussian(1.0))
    one, other = noise.init([torch.zeros(1)]), noise.init([torch.zeros(1)])
    assert stream_fingerprint(one) == stream_fingerprint(one) != stream_fingerprint(other)
    assert stream_fingerprint({"memory": [torch.zeros(1)]}) == 0


def test_an_error_has_a_status() -> None:
    assert status_of(None) == READY
    assert status_of(NonFiniteGradientError(0)) == NON_FINITE
    assert status_of(OverflowError()) == FAILED
