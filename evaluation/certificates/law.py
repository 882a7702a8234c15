"""A check on the certificates, and what they promise in words.

A certificate is an upper bound on what any attacker reads, an attack a lower one. Where an attack
is clearly above a certificate, one of the two is wrong, and nothing in the row can be believed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gradguard.evaluation.report import Row


def broken_certificates(rows: Sequence[Row]) -> list[str]:
    """One sentence for each attack whose whole interval lies above the row's certificate."""
    return [
        f"{name} reads {100 * score.asr:.1f} % of the labels behind {row.defense!r} "
        f"({row.stage}, {row.composition}, B = {row.batch_size}{rounds_of(row)}), at least "
        f"{100 * score.ci[0]:.1f} % by its interval, but at most "
        f"{100 * row.certificate['multiset']['value']:.1f} % are certified: the certificate is "
        "broken, as happens where noise or clipping do not work as they are set, and neither it "
        "nor epsilon can be relied on"
        for row in rows
        if row.certificate is not None
        for name, score in row.attacks.items()
        if score.ci[0] > row.certificate["multiset"]["value"]
    ]


def rounds_of(row: Row) -> str:
    """The number of rounds to follow other conditions; empty for one."""
    return "" if row.rounds == 1 else f", {row.rounds} rounds"


def weak_deltas(rows: Sequence[Row], records: int) -> list[str]:
    """One sentence for each defence whose delta allows to publish a record now and then.

    Args:
        records: In the clients' data.
    """
    found = {row.defense: row.delta for row in rows if row.delta and row.delta * records >= 1}
    return [
        f"delta {delta:g} of {name!r} is not below one over the {records} records of the clients: "
        "a mechanism that publishes a record now and then has such a delta, so that epsilon says "
        "little; lower delta"
        for name, delta in found.items()
    ]


def certificates_sentence(rows: Sequence[Row]) -> str | None:
    """Whether every certificate of a report holds against its attacks; ``None`` without any."""
    certified = [row for row in rows if row.certificate is not None]
    if not certified:
        return None
    compared = sum(len(row.attacks) for row in certified)
    broken = broken_certificates(certified)
    if broken:
        return (
            f"{len(broken)} of {compared} attacks on rows with a certificate exceed it: "
            + "; ".join(broken)
        )
    return (
        f"no attack exceeds a certificate ({compared} were compared, in all {len(certified)} rows "
        "with differential privacy)"
    )


def promise(row: Row) -> str | None:
    """What the certificate of a row promises, to whom and under which assumption.

    ``None`` for a row without a certificate: then nothing is promised.
    """
    found = row.certificate
    if found is None:
        return None
    return f"{promise_alone(row)} It does not cover {'; '.join(found['outside'])}."


def promise_alone(row: Row) -> str | None:
    """:func:`promise` without what it does not cover, which is the same for all rows."""
    found = row.certificate
    if found is None:
        return None
    return (
        f"{_one_message(row, found)} {_whole_run(row, found['run'])} This holds against every "
        "attacker, whatever the method, if the noise is drawn as it is set."
    )


def _one_message(row: Row, found: dict[str, Any]) -> str:
    multiset = found["multiset"]
    seen = "one message" if row.rounds == 1 else f"the {row.rounds} messages of as many rounds"
    knows = (
        "knows all other records in them, but of this one only how frequent the classes are,"
        if found["formula"] == "R1"
        else "knows how such batches are made, but no label in them,"
    )
    return (
        f"Whoever sees {seen} from {row.composition} batches of {row.batch_size}, and {knows} "
        f"names the label of a given record with a probability of at most "
        f"{percent_up(found['value'])}, where a guess without the message is right with "
        f"{percent_up(found['kappa'])}. Of all labels in the batch at most "
        f"{percent_up(multiset['value'])} are recovered on average; a guess without the message "
        f"gets {percent_up(multiset['blind'])}."
    )


def _whole_run(row: Row, run: dict[str, Any]) -> str:
    coins = ""
    if run["sample_rate"] < 1:
        every = 1 / run["sample_rate"]
        coins = f", each computed from one record in {every:{'.3g' if every < 999 else ',.0f'}},"
    spent = ""
    if row.epsilon is not None and row.delta is not None:
        spent = f" epsilon is {epsilon_up(row)} (one record added or removed), and"
    return (
        f"Over a training run of {run['releases']} messages{coins}{spent} the label of a record "
        f"is named with a probability of at most {percent_up(run['value'])}, provided that "
        f"{run['assumes']}; of a record that is in every message, with at most "
        f"{percent_up(run['unamplified'])}."
    )


def epsilon_up(row: Row) -> str:
    """Epsilon, rounded up, with its delta; ``"none"`` without differential privacy."""
    if row.epsilon is None or row.delta is None:
        return "none"
    if not row.epsilon < math.inf:
        return "unbounded"
    return f"{math.ceil(100 * row.epsilon - 1e-7) / 100:.2f} at delta {row.delta:g}"


def percent_up(share: float, digits: int = 1) -> str:
    """A bound in percent, rounded up: it must not look lower than it is.

    >>> percent_up(0.38914), percent_up(1.0), percent_up(0.1), percent_up(0.38914, 0)
    ('39.0 %', '100.0 %', '10.0 %', '39 %')
    """
    scale = 10**digits
    # Less the last bits: 0.1 is to be 10.0 % and not 10.1 %.
    return f"{math.ceil(100 * scale * share - 1e-7) / scale:.{digits}f} %"
