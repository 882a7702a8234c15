"""A table of all controls: ``python -m tests.controls [SECTION] [--only WORD] [--cells N]``.

The pytest suite says which controls hold; this says by how much, and which attack did it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

from gradguard.attacks import ADAPTIVE
from gradguard.evaluation.attackers import BLIND, attack_name
from tests.controls import processing, silence, test_oracle_gap, test_planted_leaks
from tests.controls.bench import Scores
from tests.controls.oracle import TOYS
from tests.controls.planted import PLANTS, RESCALED

ADAPTIVE_NAMES = [attack_name(attack) for attack in ADAPTIVE]


def _by_attack(scores: Scores, value: Callable[[str], float]) -> str:
    return "  ".join(f"{n} {value(n):.2f}" for n in ADAPTIVE_NAMES if n in scores.scored)


def leaks(only: str, cells: int) -> Iterator[str]:
    """Advantage over the blind guess, and the most that can be read from what is planted."""
    for plant in (*PLANTS, *RESCALED):
        if only in plant.name:
            scores = test_planted_leaks.find(plant)
            found = scores.advantage(scores.worst)
            read, blind = plant.ceiling(draws=4000)
            yield (
                f"{'ok  ' if found >= 0.5 else 'MISS'} {plant.name:52} {found:5.2f} of "
                f"{(read - blind) / (1 - blind):.2f} by {scores.worst:24} | "
                + _by_attack(scores, scores.advantage)
            )


def silent(only: str, cells: int) -> Iterator[str]:
    """False alarms, understatements and mean gain above blind of every attack."""
    heard = silence.listen(cells)
    for name, number in heard.cells.items():
        if only in name:
            above, below = heard.above[name], heard.below[name]
            yield (
                f"{'ok  ' if above <= 0.05 * cells else 'MISS'} {name:28} {number:3} cells: "
                f"above blind in {above:3}, below in {below:3}, gain {heard.gain[name]:+.4f}"
            )


def gap(only: str, cells: int) -> Iterator[str]:
    """Success as a share of that of an attacker who is optimal by construction."""
    for toy in TOYS:
        if only in toy.name:
            found = test_oracle_gap.measure(toy)
            worst = found.scores.worst
            yield (
                f"{'ok  ' if found.ratio(worst) >= 0.97 else 'MISS'} {toy.name:28} "
                f"oracle {found.oracle.mean():.3f} blind {found.scores.rate(BLIND):.3f} "
                f"ratio {found.ratio(worst):.3f} by {worst:24} | "
                + _by_attack(found.scores, found.ratio)
            )


def nested(only: str, cells: int) -> Iterator[str]:
    """The worst case of each defence, and by how much it leads those that extend it."""
    for task in processing.TASKS:
        if only not in task:
            continue
        for name in processing.NAMES:
            scores = processing.read(task, name)
            yield (
                f"     {task:20} {name:24} {scores.rate(scores.worst):.3f} by {scores.worst:24} "
                f"blind {scores.rate(BLIND):.3f} | " + _by_attack(scores, scores.rate)
            )
        for inner, outer in processing.PAIRS:
            low, high = processing.lead(processing.read(task, inner), processing.read(task, outer))
            yield (
                f"{'ok  ' if high >= 0 else 'MISS'} {task:20} {inner:24} leads {outer:24} "
                f"by {low:+.3f} to {high:+.3f}"
            )


SECTIONS = {"leaks": leaks, "silence": silent, "gap": gap, "processing": nested}


def main() -> None:
    """Print the sections that are asked for, all by default."""
    parser = argparse.ArgumentParser(prog="python -m tests.controls", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--only", default="", help="a word in the names of the rows to print")
    parser.add_argument("--cells", type=int, default=silence.CELLS, help="silent clients")
    given = parser.parse_args()
    for name in given.sections or SECTIONS:
        print(f"{name}: {SECTIONS[name].__doc__}")
        for line in SECTIONS[name](given.only, given.cells):
            print(line, flush=True)


if __name__ == "__main__":
    main()
