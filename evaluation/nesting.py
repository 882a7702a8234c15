"""A check on the attackers: what post-processing leaves, they could have computed themselves.

If one defence applies another and then something more, whatever can be read from its message can
be read from the other's: the attacker applies the rest. A report in which the longer defence leaks
clearly more has found out nothing about the shorter one, except that the attack on it is too weak.
Likewise a server that has the messages of many rounds has those of fewer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gradguard import Defense
from gradguard.evaluation.report import Row


def nested(defenses: Sequence[Defense]) -> Iterator[tuple[str, str]]:
    """Names of pairs of which the second starts with all of the first.

    With DP-SGD the first must clip alike, and may have less noise if it has no transform. A sum
    over more clients adds others' messages, which the attacker can draw as well; but what comes
    after a sum is no function of sums of what comes after each message.

    >>> from gradguard import Sign
    >>> list(nested([Defense("none", transform=[]), Defense("sign", transform=Sign())]))
    [('none', 'sign')]
    """
    for inner in defenses:
        for outer in defenses:
            if inner.name != outer.name and _adds_to(outer, inner):
                yield inner.name, outer.name


def _adds_to(outer: Defense, inner: Defense) -> bool:
    if outer.cohort < inner.cohort or (inner.cohort > 1 and outer.chain != inner.chain):
        return False
    if outer.dp is None or inner.dp is None:
        # Clipping examples one by one is no function of their mean: neither contains the other.
        same = outer.dp is inner.dp
    elif inner.chain.links:
        same = _noise_of(outer) == _noise_of(inner)
    else:  # more noise is less noise, and then the difference of their variances
        same = _noise_of(outer)[1] == _noise_of(inner)[1] and _noise_of(outer) >= _noise_of(inner)
    return same and outer.chain.links[: len(inner.chain.links)] == inner.chain.links


def _noise_of(defense: Defense) -> tuple[float, float | tuple[float, ...]]:
    assert defense.dp is not None
    return defense.dp.noise_multiplier, defense.dp.max_grad_norm


def weak_attacks(defenses: Sequence[Defense], rows: Sequence[Row]) -> list[str]:
    """One sentence for each row whose attack must be too weak, as a longer defence leaks more.

    Compared where the intervals do not overlap: two worst cases differ by chance alone.
    """
    pairs = set(nested(defenses))
    return [
        f"attack too weak here: {outer.defense!r} only adds to {inner.defense!r}, yet more "
        "was read from it "
        f"({inner.stage}, {inner.composition}, B = {inner.batch_size}: "
        f"{100 * outer.worst_asr:.0f} % against {100 * inner.worst_asr:.0f} %): "
        f"the attacks understate what {inner.defense!r} leaks"
        for inner in rows
        for outer in rows
        if (inner.defense, outer.defense) in pairs
        and _conditions(inner) == _conditions(outer)
        and outer.worst_ci[0] > inner.worst_ci[1]
    ]


def weak_pooling(rows: Sequence[Row]) -> list[str]:
    """One sentence for each row from which less was read than from fewer rounds.

    Compared where the intervals do not overlap, as in :func:`weak_attacks`.
    """
    return [
        f"attack too weak here: {more.rounds} rounds of {more.defense!r} contain "
        f"{fewer.rounds}, yet less was read from them "
        f"({more.stage}, {more.composition}, B = {more.batch_size}: "
        f"{100 * more.worst_asr:.0f} % against {100 * fewer.worst_asr:.0f} %): "
        f"the attacks understate what {more.defense!r} leaks over rounds"
        for fewer in rows
        for more in rows
        if fewer.defense == more.defense
        and fewer.rounds < more.rounds
        and _conditions(fewer)[:-1] == _conditions(more)[:-1]
        and fewer.worst_ci[0] > more.worst_ci[1]
    ]


def _conditions(row: Row) -> tuple[str, str, int, int]:
    return row.stage, row.composition, row.batch_size, row.rounds
