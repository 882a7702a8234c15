"""A check on the attackers: what post-processing leaves, they could have computed themselves.

If one defence applies another and then something more, whatever can be read from its message can
be read from the other's: the attacker applies the rest. A report in which the longer defence leaks
clearly more has found out nothing about the shorter one, except that the attack on it is too weak.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gradguard import Defense
from gradguard.evaluation.report import Row


def nested(defenses: Sequence[Defense]) -> Iterator[tuple[str, str]]:
    """Names of pairs of which the second starts with all transforms of the first.

    >>> from gradguard import Sign
    >>> list(nested([Defense("none", transform=[]), Defense("sign", transform=Sign())]))
    [('none', 'sign')]
    """
    for inner in defenses:
        for outer in defenses:
            start = outer.chain.links[: len(inner.chain.links)]
            if inner.name != outer.name and start == inner.chain.links:
                yield inner.name, outer.name


def weak_attacks(defenses: Sequence[Defense], rows: Sequence[Row]) -> list[str]:
    """One sentence for each row whose attack must be too weak, as a longer defence leaks more.

    Compared where the intervals do not overlap: two worst cases differ by chance alone.
    """
    pairs = set(nested(defenses))
    return [
        f"{outer.defense!r} only adds to {inner.defense!r}, yet more was read from it "
        f"({inner.stage}, {inner.composition}, B = {inner.batch_size}: "
        f"{100 * outer.worst_asr:.0f} % against {100 * inner.worst_asr:.0f} %): "
        f"the attacks understate what {inner.defense!r} leaks"
        for inner in rows
        for outer in rows
        if (inner.defense, outer.defense) in pairs
        and _conditions(inner) == _conditions(outer)
        and outer.worst_ci[0] > inner.worst_ci[1]
    ]


def _conditions(row: Row) -> tuple[str, str, int]:
    return row.stage, row.composition, row.batch_size
