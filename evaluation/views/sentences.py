"""The report in words: one sentence per defence, and one line that sums up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gradguard.evaluation.certificates.law import epsilon_up, percent_up
from gradguard.evaluation.report import Failure, Report, Row
from gradguard.evaluation.views.placing import short

# Below this advantage a leak is too small for the batches of an ordinary study to tell from none.
NOTICEABLE = 0.05

TONES = ("quiet", "unclear", "leaks")
"""The answers of ``tone``, from the mildest to the gravest."""

STAGE_WORDS = {"init": "an untrained model", "trained": "a trained model"}


def percent(share: float) -> str:
    """A share as a whole percentage.

    >>> percent(0.976)
    '98 %'
    """
    return f"{100 * share:.0f} %"


def cell_words(row: Row | Failure) -> str:
    """The conditions of a row in words."""
    stage = STAGE_WORDS.get(row.stage, row.stage)
    return f"{stage}, {row.composition} batches of {row.batch_size}{over_rounds(row)}"


def over_rounds(row: Row | Failure) -> str:
    """How many rounds are pooled, to follow the batches; empty for one."""
    return "" if row.rounds == 1 else f", {row.rounds} rounds of each"


def messages(row: Row) -> str:
    """How many messages of a batch there are, in words."""
    return "one message" if row.rounds == 1 else f"all {row.rounds} messages"


def by_defense(report: Report) -> dict[str, list[Row]]:
    """Rows by defence, in the order of the study."""
    grouped: dict[str, list[Row]] = {}
    for row in report.rows:
        grouped.setdefault(row.defense, []).append(row)
    return grouped


def worst_row(rows: Sequence[Row]) -> Row:
    """The row in which a defence leaks most; one that clearly leaks before one that may."""
    return max(rows, key=lambda row: (TONES.index(tone(row)), row.advantage))


def leaks(row: Row) -> bool:
    """Whether an attack is clearly above a blind guess: the whole interval is, by 5 points."""
    return row.advantage_ci[0] > NOTICEABLE


def tone(row: Row) -> str:
    """``"leaks"``, ``"quiet"`` where even the bad end shows none, or else ``"unclear"``.

    The worst attack is chosen on calibration batches. Where these are few they may favour a blind
    guess, which is above itself by exactly nothing: what the other attacks read counts as well.
    """
    if leaks(row):
        return "leaks"
    most = max([row.advantage_ci[1], *(score.advantage for score in row.attacks.values())])
    return "quiet" if most <= NOTICEABLE else "unclear"


def defense_sentence(rows: Sequence[Row], undefended: float | None) -> str:
    """What one defence costs, who reads it, and how well.

    Args:
        rows: All rows of one defence.
        undefended: Accuracy without a defence, if known.
    """
    row = worst_row(rows)
    others = [other for other in rows if other.stage != row.stage]
    elsewhere = f"; {_briefly(worst_row(others))}" if others else ""
    proven = "" if row.certificate is None else f"; {_proven(row, row.certificate)}"
    cost = f"{_cost(row, undefended)}{_bytes(row)}"
    return f"{row.defense}: {cost}; {_reading(row)}{elsewhere}{proven}."


def _bytes(row: Row) -> str:
    if row.bytes_per_update is None:
        return ""
    return f"; a message takes {row.bytes_per_update:,.0f} bytes, {row.dense_bytes:,} uncompressed"


def _proven(row: Row, certificate: Mapping[str, Any]) -> str:
    """What holds against every attacker under the row's conditions, in half a sentence."""
    return (
        f"proven against every attacker: from {messages(row)} of {row.composition} batches of "
        f"{row.batch_size}, a record's label is named with at most "
        f"{percent_up(certificate['value'], 0)} (a guess: {percent(certificate['kappa'])}), and a "
        f"training run has epsilon {epsilon_up(row)}"
    )


def _cost(row: Row, undefended: float | None) -> str:
    if row.diverged:
        return "training with it diverges, so it is of no use as it is set"
    if undefended is None:
        return f"trains to an accuracy of {percent(row.accuracy)}"
    lost = round(100 * undefended) - round(100 * row.accuracy)
    if lost <= 0:
        return f"costs no accuracy ({percent(row.accuracy)})"
    points = "1 point" if lost == 1 else f"{lost} points"
    return f"costs {points} of accuracy ({percent(row.accuracy)} against {percent(undefended)})"


def _reading(row: Row) -> str:
    blind = f"a blind guess gets {percent(row.blind_asr)}"
    reads = (
        f"{row.worst_attack} reads {percent(row.worst_asr)} of the labels in {row.composition} "
        f"batches of {row.batch_size} on {STAGE_WORDS.get(row.stage, row.stage)}"
        f"{over_rounds(row)}, where {blind}"
    )
    if leaks(row):
        return reads
    if tone(row) == "quiet":
        return f"no attack here does better than a blind guess ({percent(row.blind_asr)})"
    other = max(row.attacks, key=lambda name: row.attacks[name].asr, default=row.worst_attack)
    if other != row.worst_attack and row.attacks[other].asr > row.worst_asr:
        reads = f"{reads}, and {other}, not chosen beforehand, {percent(row.attacks[other].asr)}"
    return f"whether it leaks is unclear: {reads}, which chance may explain"


def _briefly(row: Row) -> str:
    """How well the other stage is read, in half a sentence."""
    where = STAGE_WORDS.get(row.stage, row.stage)
    if leaks(row):
        blind = percent(row.blind_asr)
        return f"on {where}, {row.worst_attack} reads {percent(row.worst_asr)} (blind {blind})"
    # The bad end of the interval: "not found" must not be read as "not there".
    most, blind = percent(row.worst_ci[1]), percent(row.blind_asr)
    return f"on {where} no clear leak was found (at most {most} read, blind {blind})"


def undefended_accuracy(report: Report) -> float | None:
    """Accuracy of the study's own row without a defence, where it has one.

    Only that row is a fair baseline: it was trained on the same images as the others.
    """
    bare = {
        d["name"]
        for d in report.study["defense"]
        if not d.get("transform") and d.get("dp") is None and d.get("cohort", 1) == 1
    }
    found = [row.accuracy for row in report.rows if row.defense in bare]
    return found[0] if found else None


def sentences(report: Report) -> dict[str, str]:
    """One sentence per defence, by its name."""
    base = undefended_accuracy(report)
    return {name: defense_sentence(rows, base) for name, rows in by_defense(report).items()}


def brief(rows: Sequence[Row], undefended: float | None) -> str:
    """One defence in one line: what is read in its worst case, and what it costs.

    Args:
        rows: All rows of one defence.
        undefended: Accuracy without a defence, if known.
    """
    row = worst_row(rows)
    size = "" if row.bytes_per_update is None else f"; {row.bytes_per_update:,.0f} bytes a message"
    bound = "" if row.certificate is None else f"; epsilon {epsilon_up(row)}"
    return (
        f"{row.worst_attack} reads {percent(row.worst_asr)} of the labels (blind "
        f"{percent(row.blind_asr)}); {_cost(row, undefended)}{size}{bound}."
    )


def knowledge_line(report: Report) -> str | None:
    """What is read by how much is known, as means over all rows; ``None`` where no row says."""
    rows = [row for row in report.rows if row.knowledge]
    if not rows:
        return None
    means = (
        f"{level} {percent(sum(row.knowledge[level].asr for row in rows) / len(rows))}"
        for level in rows[0].knowledge
    )
    blind = percent(sum(row.blind_asr for row in rows) / len(rows))
    return f"Mean labels read: {', '.join(means)}; blind {blind}."


def auxiliary_words(report: Report) -> str:
    """The images that the attacker has, in words."""
    settings = report.study.get("attack", {})
    images = report.provenance.get("data", {}).get("auxiliary", "some")
    each = settings.get("auxiliary_per_class")
    limit = "" if each is None else f", at most {each} of a class"
    shift = settings.get("auxiliary_shift", "none")
    of = "" if shift == "none" else f", not distributed as the clients': shift {shift!r}"
    return f"{images} images of its own{limit}{of}"


def closing_line(report: Report) -> str:
    """What a reader who reads one line should take away."""
    worst = {name: worst_row(rows) for name, rows in by_defense(report).items()}
    if not worst:
        return "No row was finished."
    named = {
        kind: [short(n, 60) for n, row in worst.items() if tone(row) == kind] for kind in TONES
    }
    if named["unclear"] or named["quiet"]:
        said = [f"{len(named['leaks'])} of {len(worst)} defences leak labels"]
        if named["unclear"]:
            said.append(f"{len(named['unclear'])} may leak: {', '.join(named['unclear'])}")
        if named["quiet"]:
            quiet = ", ".join(named["quiet"])
            said.append(f"not shown to leak here, which is no proof: {quiet}")
        return f"{'; '.join(said)}."
    least = min(worst.values(), key=lambda row: row.advantage)
    count = "The one defence leaks" if len(worst) == 1 else f"All {len(worst)} defences leak"
    return (
        f"{count} labels; the least, {short(least.defense, 60)}, still lets {least.worst_attack} "
        f"read {percent(least.worst_asr)} where a blind guess gets {percent(least.blind_asr)}, "
        f"at an accuracy of {percent(least.accuracy)}."
    )


def failed_words(failure: Failure) -> str:
    """Which row could not be made, and why."""
    why = failure.why.rstrip(".")
    return f"{failure.defense} ({cell_words(failure)}) could not be made: {why}"


def failed_line(report: Report) -> str | None:
    """How many rows could not be made; ``None`` where all could."""
    failed, every = len(report.failures), len(report.failures) + len(report.rows)
    if not failed:
        return None
    return (
        f"{failed} of {every} rows could not be made: they have no number at all, which is no "
        "low one."
    )
