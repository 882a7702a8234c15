"""Which candidate to use, in one sentence, and what the runner-up would cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gradguard.evaluation.errors import UnusableInputError
from gradguard.evaluation.search.objectives import Candidate, pareto

RATIO = 1.1
"""Sizes that differ by less are called the same."""

QUICKER = 1.4
"""Likewise, times of a step."""


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """What a candidate must keep to, judged by the bad ends of its intervals.

    Args:
        max_advantage: The most that may be read over a blind guess; in [0, 1].
        min_accuracy: The least accuracy after training; in [0, 1].
        max_bytes: The longest message on average, in bytes; above 0.
    """

    max_advantage: float | None = None
    min_accuracy: float | None = None
    max_bytes: float | None = None

    def __post_init__(self) -> None:
        # Written so that NaN fails.
        if self.max_advantage is not None and not _share(self.max_advantage):
            raise UnusableInputError(
                "max-advantage must be from 0 to 1 (0.2 is a fifth of what a blind guess leaves), "
                f"got {self.max_advantage!r}"
            )
        if self.min_accuracy is not None and not _share(self.min_accuracy):
            raise UnusableInputError(
                f"min-accuracy must be from 0 to 1 (0.9 is 90 %), got {self.min_accuracy!r}"
            )
        if self.max_bytes is not None and not (_numeric(self.max_bytes) and self.max_bytes > 0):
            raise UnusableInputError(f"max-bytes must be above 0, got {self.max_bytes!r}")

    def misses(self, candidate: Candidate) -> dict[str, float]:
        """By how much a candidate fails, by constraint: shares, or bytes; empty where it holds."""
        over = {
            "advantage": _beyond(candidate.advantage_most, self.max_advantage),
            "accuracy": _beyond(self.min_accuracy, candidate.accuracy_least),
            "bytes": _beyond(candidate.bytes_per_update, self.max_bytes),
        }
        return {name: by for name, by in over.items() if by > 0}

    def __str__(self) -> str:
        parts = []
        if self.max_advantage is not None:
            parts.append(f"an advantage of at most {_percent(self.max_advantage)}")
        if self.min_accuracy is not None:
            parts.append(f"an accuracy of at least {_percent(self.min_accuracy)}")
        if self.max_bytes is not None:
            parts.append(f"messages of at most {self.max_bytes:,.0f} bytes")
        return " and ".join(parts) or "a leak that was measured well"


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """What to do.

    Args:
        use: The candidate to use; ``None`` where none satisfies the constraints.
        instead: The runner-up, if there is one.
        nearest: Where none satisfies them, the one that fails by least.
        sentence: All of it in words.
    """

    use: str | None
    instead: str | None = None
    nearest: str | None = None
    sentence: str


def recommend(
    tried: Sequence[Candidate], constraints: Constraints, *, undefended: float | None = None
) -> Recommendation:
    """The best of the candidates that satisfy the constraints.

    With a limit on the advantage alone, the best is the most accurate; with a limit on accuracy
    alone, the one of which least is read; with both or neither, the one with the most accuracy
    minus advantage. Differences under half a point or so do not count: then shorter messages
    decide, then quicker steps.

    Guarantees:

    - what is recommended did not fail, satisfies every constraint by the bad end of its interval,
      and leaks no more than was measured as far as the report knows;
    - nothing that satisfies them is better in every respect;
    - the order of the candidates decides only between equals.

    Not guaranteed: that the best end of a noisy measurement is also the best on new data. The
    more candidates, the likelier that the first of them was lucky.

    Args:
        undefended: Accuracy without a defence, to be told beside that of the best.

    >>> a = Candidate(name="A", advantage=0.03, advantage_most=0.05, accuracy=0.9,
    ...     accuracy_least=0.88, bytes_per_update=1000.0, step_overhead=1.0)
    >>> b = Candidate(name="B", advantage=0.0, advantage_most=0.02, accuracy=0.85,
    ...     accuracy_least=0.83, bytes_per_update=1000.0, step_overhead=1.0)
    >>> print(recommend([b, a], Constraints(max_advantage=0.1)).sentence)
    Use A: an advantage of 3 % over a blind guess (at most 5 %), an accuracy of 90 % (at least 88 %), 1,000 bytes a message and 1 times the step time; B instead reads 3 points less and costs 5 points of accuracy.
    """  # noqa: E501  # the sentence is one
    sound = [candidate for candidate in tried if candidate.failed is None]
    if not sound:
        why = f": {tried[0].failed}" if tried else ""
        sentence = f"Nothing can be recommended: every candidate failed{why}."
        return Recommendation(use=None, sentence=sentence)
    holding = pareto([c for c in sound if c.doubt is None and not constraints.misses(c)])
    if not holding:
        return _none_holds(sound, constraints)
    best, *others = sorted(holding, key=lambda candidate: _rank(candidate, constraints))
    sentence = f"Use {best.name}: {described(best, undefended=undefended)}"
    if not others:
        alone = "no other candidate that holds is better in any respect"
        return Recommendation(use=best.name, sentence=f"{sentence}; {alone}.")
    # One that differs in nothing that can be said would be no alternative.
    runner_up = next((other for other in others if _gains(best, other)), others[0])
    said = f"{sentence}; {runner_up.name} instead {compared(best, runner_up)}."
    return Recommendation(use=best.name, instead=runner_up.name, sentence=said)


def described(candidate: Candidate, *, undefended: float | None = None) -> str:
    """A candidate's numbers in words."""
    bare = "" if undefended is None else f", and {_percent(undefended)} without a defence"
    return (
        f"an advantage of {_percent(max(candidate.advantage, 0.0))} over a blind guess (at most "
        f"{_percent(max(candidate.advantage_most, 0.0))}), an accuracy of "
        f"{_percent(candidate.accuracy)} (at least {_percent(candidate.accuracy_least)}{bare}), "
        f"{candidate.bytes_per_update:,.0f} bytes a message and {candidate.step_overhead:.2g} "
        "times the step time"
    )


def compared(best: Candidate, other: Candidate) -> str:
    """What is better and what is worse about another candidate, the better first."""
    gains, losses = _gains(best, other), _losses(best, other)
    if not gains and not losses:
        return "is as good by every measure"
    return _listed([*gains, *losses])


def _gains(best: Candidate, other: Candidate) -> list[str]:
    read = _points(max(best.advantage, 0.0) - max(other.advantage, 0.0))
    gained = _points(other.accuracy - best.accuracy)
    fewer, quicker = (
        best.bytes_per_update / other.bytes_per_update,
        best.step_overhead / other.step_overhead,
    )
    return [
        *([f"reads {read} less"] if read else []),
        *([f"gains {gained} of accuracy"] if gained else []),
        *([f"sends {fewer:.2g} times fewer bytes"] if fewer >= RATIO else []),
        *([f"takes {quicker:.2g} times less time a step"] if _quicker(other, best) else []),
    ]


def _losses(best: Candidate, other: Candidate) -> list[str]:
    read = _points(max(other.advantage, 0.0) - max(best.advantage, 0.0))
    lost = _points(best.accuracy - other.accuracy)
    more, slower = (
        other.bytes_per_update / best.bytes_per_update,
        other.step_overhead / best.step_overhead,
    )
    return [
        *([f"reads {read} more"] if read else []),
        *([f"costs {lost} of accuracy"] if lost else []),
        *([f"sends {more:.2g} times the bytes"] if more >= RATIO else []),
        *([f"takes {slower:.2g} times the time a step"] if _quicker(best, other) else []),
    ]


def _quicker(one: Candidate, other: Candidate) -> bool:
    # Within a class, and just across its border, noise may explain it.
    apart = other.step_overhead >= QUICKER * one.step_overhead
    return one.time_class < other.time_class and apart


def _none_holds(sound: Sequence[Candidate], constraints: Constraints) -> Recommendation:
    nearest = min(sound, key=lambda candidate: _distance(candidate, constraints))
    misses = constraints.misses(nearest)
    words = {
        "advantage": f"its advantage may be as high as {_percent(nearest.advantage_most)}, "
        f"{_gap(misses.get('advantage', 0.0))} too high",
        "accuracy": f"its accuracy may be as low as {_percent(nearest.accuracy_least)}, "
        f"{_gap(misses.get('accuracy', 0.0))} too low",
        "bytes": f"it takes {nearest.bytes_per_update:,.0f} bytes a message, "
        f"{misses.get('bytes', 0.0):,.0f} too many",
    }
    parts = [words[name] for name in misses]
    if nearest.doubt is not None:
        parts.append(f"what it leaks is understated ({nearest.doubt})")
    return Recommendation(
        use=None,
        nearest=nearest.name,
        sentence=f"No candidate is sure to have {constraints}; the nearest is {nearest.name}: "
        f"{_listed(parts)}.",
    )


def _rank(candidate: Candidate, constraints: Constraints) -> tuple[float, ...]:
    secret, accuracy = -max(candidate.advantage, 0.0), candidate.accuracy
    if (constraints.max_advantage is None) == (constraints.min_accuracy is None):
        wanted = secret + accuracy
    else:
        wanted = secret if constraints.max_advantage is None else accuracy
    return (
        -round(100 * wanted),
        candidate.bytes_per_update,
        candidate.time_class,
        -wanted,
    )


def _distance(candidate: Candidate, constraints: Constraints) -> float:
    """How far from holding, all constraints together: shares as they are, bytes as a share."""
    misses = constraints.misses(candidate)
    most = constraints.max_bytes or 1.0
    doubt = 0.0 if candidate.doubt is None else 1.0
    return doubt + sum(by / most if name == "bytes" else by for name, by in misses.items())


def _beyond(value: float | None, limit: float | None) -> float:
    return 0.0 if value is None or limit is None else max(value - limit, 0.0)


def _numeric(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _percent(share: float) -> str:
    """A share with a decimal where it is small, unless that is zero: limits are small."""
    text = f"{100 * share:.1f}" if share < 0.1 else f"{100 * share:.0f}"
    return f"{text.removesuffix('.0')} %"


def _points(share: float) -> str:
    """A difference in whole points; empty where it is less than half a one."""
    points = round(100 * share)
    return "" if points < 1 else "1 point" if points == 1 else f"{points} points"


def _gap(share: float) -> str:
    """A difference in points however small, for it decides."""
    points = 100 * share
    if points < 0.1:
        return "less than 0.1 points"
    if points >= 9.95:
        return _points(share)
    text = f"{points:.1f}".removesuffix(".0")
    return f"{text} point{'s' * (text != '1')}"


def _listed(parts: Sequence[str]) -> str:
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"
