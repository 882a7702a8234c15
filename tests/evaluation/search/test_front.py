from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from gradguard.evaluation.search.front import nondominated

# Few different values, so that ties and duplicates are the rule; infinities among them.
POINTS = arrays(
    np.float64,
    array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=9),
    elements=st.sampled_from([-np.inf, -1.0, -0.0, 0.0, 1.0, 2.0, np.inf]),
)


def reference(points: np.ndarray) -> list[bool]:
    """Word for word: nobody is no greater anywhere and less somewhere."""

    def dominates(a: np.ndarray, b: np.ndarray) -> bool:
        return all(x <= y for x, y in zip(a, b, strict=True)) and any(
            x < y for x, y in zip(a, b, strict=True)
        )

    return [not any(dominates(other, point) for other in points) for point in points]


@given(POINTS)
def test_the_front_is_that_of_the_definition(points: np.ndarray) -> None:
    assert nondominated(points).tolist() == reference(points)


@given(POINTS, st.randoms(use_true_random=False))
def test_the_answer_goes_with_the_points_in_whatever_order_they_come(
    points: np.ndarray, random: object
) -> None:
    order = np.arange(len(points))
    random.shuffle(order)  # type: ignore[attr-defined]  # hypothesis' own kind of Random
    assert nondominated(points[order]).tolist() == nondominated(points)[order].tolist()


@given(POINTS)
def test_equal_points_are_all_on_the_front_or_none_is(points: np.ndarray) -> None:
    twice = nondominated(np.concatenate([points, points]))
    assert twice.tolist() == [*nondominated(points), *nondominated(points)]


@given(POINTS)
def test_every_point_off_the_front_is_dominated_by_one_on_it(points: np.ndarray) -> None:
    kept = nondominated(points)
    for point in points[~kept]:
        front = points[kept]
        assert ((front <= point).all(axis=1) & (front < point).any(axis=1)).any()


def test_the_front_is_that_of_optuna() -> None:
    optuna = pytest.importorskip("optuna")
    points = np.random.default_rng(0).integers(0, 6, (60, 3)).astype(float)
    study = optuna.create_study(directions=["minimize"] * 3)
    for point in points:
        study.add_trial(optuna.trial.create_trial(values=point.tolist()))
    theirs = {trial.number for trial in study.best_trials}
    assert theirs == set(np.flatnonzero(nondominated(points)).tolist())
    assert 0 < len(theirs) < 60


def test_greater_is_not_better() -> None:
    line = np.array([[1.0, 1.0], [2.0, 2.0]])
    assert nondominated(line).tolist() == [True, False]
    assert nondominated(-line).tolist() == [False, True]


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        nondominated(np.array([[1.0, np.nan]]))


def test_another_number_of_dimensions_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        nondominated(np.zeros(3))


def test_nothing_and_columns_of_nothing() -> None:
    assert nondominated(np.zeros((0, 3))).shape == (0,)
    assert nondominated(np.zeros((3, 0))).tolist() == [True, True, True]
