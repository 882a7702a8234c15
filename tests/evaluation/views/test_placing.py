from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from gradguard.evaluation.views.placing import spread


@given(st.lists(st.floats(0, 100), max_size=30))
def test_names_keep_their_order_stay_inside_and_do_not_overlap(wanted: list[float]) -> None:
    placed = spread(wanted, gap=5.0, low=0.0, high=100.0)
    assert all(-1e-9 <= p <= 100 + 1e-9 for p in placed)
    ordered = sorted(placed)
    room = 100 / max(len(wanted) - 1, 1)
    gaps = [b - a for a, b in itertools.pairwise(ordered)]
    assert all(gap >= min(5.0, room) - 1e-6 for gap in gaps)
    for i, a in enumerate(wanted):
        for j, b in enumerate(wanted):
            assert not (a < b and placed[i] > placed[j])


def test_names_with_room_stay_where_they_are() -> None:
    assert spread([10.0, 50.0, 30.0], gap=5.0, low=0.0, high=100.0) == [10.0, 50.0, 30.0]
