"""Which of two computed promises is the better one: epsilon with its delta, or a certificate.

They have no interval: any difference counts. An epsilon says something at its delta only, so that
of two pairs one is the better one where it is lower in one number and higher in neither.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

from gradguard.evaluation.report import Row

Promise = Literal["epsilon", "delta", "certificate of a label", "certificate of a batch"]


class Difference(NamedTuple):
    """A promised number that is another; ``None`` where none is promised."""

    quantity: Promise
    before: float | None
    after: float | None
    better: bool


def differences(old: Row, new: Row) -> Iterator[Difference]:
    """What is promised otherwise, where it can be said which is better."""
    yield from _private(old, new)
    yield from _certified(old, new)


def undecided(old: Row, new: Row) -> str | None:
    """Why neither epsilon says more than the other; ``None`` where one does, or they are equal."""
    if not {-1, 1} <= _signs(old, new):
        return None
    assert old.epsilon is not None  # else it is infinite, and there is but one sign
    assert new.epsilon is not None
    return (
        f"epsilon of {old.defense!r}: {old.epsilon:.4g} at delta {old.delta:g} in the first report "
        f"and {new.epsilon:.4g} at {new.delta:g} in the second"
    )


def _private(old: Row, new: Row) -> Iterator[Difference]:
    signs = _signs(old, new)
    if not signs - {0} or {-1, 1} <= signs:
        return
    better = -1 in signs
    if _sign(_spent(old), _spent(new)):
        yield Difference("epsilon", old.epsilon, new.epsilon, better)
    if math.inf not in (_spent(old), _spent(new)) and _sign(old.delta or 0.0, new.delta or 0.0):
        yield Difference("delta", old.delta, new.delta, better)


def _signs(old: Row, new: Row) -> set[int]:
    """Where epsilon and delta go; without a finite epsilon, nothing is promised at any delta."""
    a, b = _spent(old), _spent(new)
    found = {_sign(a, b)}
    if math.inf not in (a, b):
        found.add(_sign(old.delta or 0.0, new.delta or 0.0))
    return found


def _spent(row: Row) -> float:
    return math.inf if row.epsilon is None else row.epsilon


def _sign(before: float, after: float) -> int:
    if before == after or math.isclose(before, after, rel_tol=1e-9):
        return 0
    return 1 if after > before else -1


def _certified(old: Row, new: Row) -> Iterator[Difference]:
    pairs = zip(_bounds(old), _bounds(new), strict=True)
    names: tuple[Promise, Promise] = ("certificate of a label", "certificate of a batch")
    for name, (a, b) in zip(names, pairs, strict=True):
        # Without a certificate all may be read, as with one of 1.
        if sign := _sign(1.0 if a is None else a, 1.0 if b is None else b):
            yield Difference(name, a, b, sign < 0)


def _bounds(row: Row) -> tuple[float | None, float | None]:
    if row.certificate is None:
        return None, None
    return row.certificate["value"], row.certificate["multiset"]["value"]
