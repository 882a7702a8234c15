"""A scan on a terminal: class by class, attacker by attacker, and one plain closing line."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradguard.evaluation.attackers import BLIND
from gradguard.evaluation.decisions.playing import BASELINE_NAMES
from gradguard.evaluation.decisions.scan import LEAKS, NOT_SHOWN, UNCLEAR, Answer, Scan
from gradguard.evaluation.views.sentences import percent

ROWS = 8  # attackers on the terminal; all of them are in the JSON
CLASSES = 20


def print_scan(found: Scan, console: Console, *, simulated_as: str = "none") -> None:
    """The worst attacker's answer class by class, the attackers, and a closing sentence."""
    answer = found.answer
    if answer is not None:
        console.print(_classes(found))
    console.print(_attackers(found))
    for name, why in _grouped(found.skipped):
        console.print(Text(f"not run ({why}): {name}", style="dim"))
    for note in found.notes:
        console.print(Text(f"Note: {note}."))
    for difference in found.unlike:
        console.print(Text(f"Unlike all simulated updates: {difference}.", style="yellow"))
    if answer is not None:
        mixed = found.composition or "a broad mixture of compositions"
        console.print(
            Text(
                f"Measured on {found.trials} simulated updates ({found.calibration} others chose "
                f"the attacker): batches of {found.batch_size} auxiliary images, {mixed}, defence "
                f"{simulated_as!r}; 95 % intervals.",
                style="dim",
            )
        )
    console.print(Text(closing(found), style="bold"))


def closing(found: Scan) -> str:
    """The verdict in one or two sentences."""
    answer = found.strongest
    if answer is None:
        return (
            "Not measured: without auxiliary data (--data) nobody knows how often these answers "
            "are right. Nothing here says that the labels are safe."
        )
    assert answer.asr is not None
    assert found.blind_asr is not None
    reads = (
        f"{answer.attack} reads {percent(answer.asr)} of the labels of simulated updates like "
        f"this one, where a blind guess gets {percent(found.blind_asr)}"
    )
    if found.verdict == LEAKS:
        later = "" if answer.attack == found.worst else f" {answer.attack} was not chosen before."
        return f"Labels leak: {reads}.{later}"
    if found.verdict == NOT_SHOWN:
        return f"Not shown to leak, which is no proof: {reads}."
    if found.verdict == UNCLEAR:
        return (
            f"Unclear: {reads}; it or another attacker may read more than a guess, and chance "
            "may explain that. More --trials tell; nothing here says that the labels are safe."
        )
    return (
        f"Not measured: {reads}, but this one is unlike them. Check --weights, --defense, "
        "--local-steps and the sign; nothing here says that the labels are safe."
    )


def _classes(found: Scan) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("class", justify="right")
    table.add_column(f"labels read\nby {found.worst}", justify="right")
    table.add_column("so it says", no_wrap=True)
    table.add_column("right in simulated updates", no_wrap=True)
    table.add_column("without\nlooking", justify="right")
    # The classes that are read first: of a thousand, most are absent.
    shown = sorted(found.classes, key=lambda one: (-one.count, one.label))[:CLASSES]
    for one in sorted(shown, key=lambda one: one.label):
        says = "at least one" if one.count else "none"
        believed = "never said there"
        if one.confidence is not None:
            low, high = one.ci
            believed = f"{percent(one.confidence)} ({_span(low, high)}) of {one.said}"
        table.add_row(str(one.label), str(one.count), says, believed, percent(one.base))
    if len(shown) < len(found.classes):
        table.caption = f"{len(found.classes) - len(shown)} more classes are in --json"
    return table


def _attackers(found: Scan) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("attacker", no_wrap=True)
    table.add_column("labels it reads here", overflow="fold", max_width=44)
    for name in ("of simulated\nupdates", "above\nblind"):
        table.add_column(name, justify="right", no_wrap=True)
    ranked = sorted(found.answers, key=lambda one: (one.attack != found.worst, -(one.asr or 0.0)))
    shown = ranked if found.worst is None else ranked[:ROWS]
    shown += [one for one in ranked if one.attack == BLIND and one not in shown]
    for one in shown:
        blind = " (blind)" if one.attack in BASELINE_NAMES else ""
        table.add_row(Text(one.attack + blind), _labels(one), *_measured(one))
    if len(shown) < len(ranked):
        table.caption = f"{len(ranked) - len(shown)} more attackers are in --json"
    return table


def _measured(answer: Answer) -> tuple[str, str]:
    if answer.asr is None or answer.ci is None or answer.advantage is None:
        return "not measured", "-"
    assert answer.advantage_ci is not None
    return (
        f"{percent(answer.asr)} ({_span(*answer.ci)})",
        f"{answer.advantage:.2f} ({answer.advantage_ci[0]:.2f}-{answer.advantage_ci[1]:.2f})",
    )


def _span(low: float, high: float) -> str:
    return f"{100 * low:.0f}-{100 * high:.0f}"


def _labels(answer: Answer) -> str:
    """Counts as a server would list them: class, times how often."""
    parts = [f"{c}" if n == 1 else f"{c}x{n}" for c, n in enumerate(answer.counts) if n]
    more = f" and {len(parts) - 24} more" if len(parts) > 24 else ""
    return " ".join(parts[:24]) + more


def _grouped(skipped: dict[str, str]) -> list[tuple[str, str]]:
    """Names that share a reason, together."""
    groups: dict[str, list[str]] = {}
    for name, why in skipped.items():
        groups.setdefault(why, []).append(name)
    return [(", ".join(names), why) for why, names in groups.items()]
