"""The outcome of a search: on a terminal and as ``search.json``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradguard.evaluation.search.objectives import Candidate, pareto
from gradguard.evaluation.search.recommend import Constraints, Recommendation, recommend
from gradguard.evaluation.search.settings import SearchSettings
from gradguard.evaluation.views.table import size_text

SCHEMA = 1


@dataclass(frozen=True)
class Found:
    """What a search has found.

    Args:
        tried: Every different candidate, the study's own defences first.
        seed: Which decided all of it.
        bare: Name of the candidate without a defence.
        notes: What weakens the numbers, as ``gradguard gate`` says it of what is recommended.
    """

    tried: tuple[Candidate, ...]
    settings: SearchSettings
    seed: int
    bare: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def front(self) -> list[Candidate]:
        """The candidates that no other beats, in the order of their advantage."""
        return sorted(pareto(self.tried), key=lambda candidate: candidate.advantage)

    @property
    def recommendation(self) -> Recommendation:
        """What to use under the search's constraints."""
        sound = {c.name: c.accuracy for c in self.tried if c.failed is None}
        bare = None if self.bare is None else sound.get(self.bare)
        return recommend(self.tried, self.settings.constraints, undefended=bare)

    def to_json(self) -> str:
        """Everything that was found; a candidate that failed has its reason and no numbers."""
        table = {
            "schema": SCHEMA,
            "seed": self.seed,
            "trials": self.settings.trials,
            "batch": self.settings.batch,
            "constraints": asdict(self.settings.constraints),
            "recommendation": asdict(self.recommendation),
            "front": [candidate.name for candidate in self.front],
            "notes": list(self.notes),
            "candidates": [_plain(c, self.settings.constraints) for c in self.tried],
            "space": self.settings.space.to_list(),
        }
        return json.dumps(table, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def _plain(candidate: Candidate, constraints: Constraints) -> dict[str, Any]:
    if candidate.failed is not None:
        return {"name": candidate.name, "failed": candidate.failed}
    return asdict(candidate) | {"holds": not constraints.misses(candidate)}


def print_found(found: Found, console: Console) -> None:
    """The front as a table, what failed, and the recommendation as the last line."""
    if found.front:
        console.print(_table(found.front, found.settings.constraints))
    for candidate in found.tried:
        if candidate.failed is not None:
            console.print(Text(f"{candidate.name} failed: {candidate.failed}", style="yellow"))
    failed = sum(candidate.failed is not None for candidate in found.tried)
    console.print(
        Text(
            f"{len(found.tried)} different candidates, {failed} failed, {len(found.front)} on the "
            f"front; {found.settings.trials} proposed, seed {found.seed}. Advantages are the worst "
            "over all conditions of the study, with the bad end of the interval. The best of many "
            "may have been lucky: evaluate it with another seed before you rely on it.",
            style="dim",
        )
    )
    for note in found.notes:
        console.print(Text(f"Note: {note}."))
    console.print(Text(found.recommendation.sentence, style="bold"))


def _table(front: Sequence[Candidate], constraints: Constraints) -> Table:
    table = Table(
        title=Text("No candidate is better in every respect than these", style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("defence", overflow="fold", min_width=20)
    # Minimum widths: where the terminal is narrow, rich is to fold names and never cut numbers.
    for name, width in (
        *(("advan-\ntage %", 6), ("at\nmost", 4), ("accuracy\n%", 8), ("at\nleast", 5)),
        *(("bytes\nsent", 5), ("step\ntime", 5)),
    ):
        table.add_column(name, justify="right", no_wrap=True, min_width=width)
    limited = constraints != Constraints()
    if limited:
        table.add_column("holds", no_wrap=True)
    for candidate in front:
        holds = not constraints.misses(candidate)
        table.add_row(
            Text(candidate.name, style="green" if limited and holds else ""),
            *(_whole(max(candidate.advantage, 0.0)), _whole(candidate.advantage_most)),
            *(_whole(candidate.accuracy), _whole(candidate.accuracy_least)),
            size_text(candidate.bytes_per_update),
            f"x{candidate.step_overhead:.2g}",
            *(["yes" if holds else "no"] if limited else []),
        )
    return table


def _whole(share: float) -> str:
    return f"{100 * share:.0f}"
