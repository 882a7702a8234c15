"""One measurement of a client's leakage, and what a monitor says about it."""

from __future__ import annotations

from dataclasses import KW_ONLY, asdict, dataclass
from typing import Any

from gradguard.evaluation.metrics import Interval
from gradguard.evaluation.views.sentences import percent


@dataclass(frozen=True)
class Leakage:
    """What the worst attacker reads of messages that this client would send now.

    Args:
        step: Calls of :meth:`Monitor.check` before this one.
        attack: The best attacker that looks, chosen on calibration messages.
        asr, ci: The share of the labels that it reads of simulated messages.
        blind_asr: The share that the best blind guess gets.
        advantage, advantage_ci: How far above that it is; 1 is every label.
        trials: Simulated messages behind it.
        seconds: What the measurement took.
        limit: The highest advantage allowed; ``None`` if none is set.
        own_batch: The share of the labels of the client's real batch that the same attacker reads
            of a message like the one to be sent; ``None`` where the labels were not given. One
            sample, from the client's data: for the log, and in no decision.

    >>> seen = Leakage(
    ...     step=100, attack="LLG", asr=0.7, ci=(0.65, 0.75), blind_asr=0.4, advantage=0.5,
    ...     advantage_ci=(0.42, 0.58), trials=100, seconds=2.0, limit=0.2,
    ... )
    >>> print(seen)
    step 100: LLG reads 70 % of the labels, blind 40 %: advantage 0.50 (0.42 to 0.58), limit 0.20
    >>> seen.exceeded
    True
    """

    _: KW_ONLY
    step: int
    attack: str
    asr: float
    ci: Interval
    blind_asr: float
    advantage: float
    advantage_ci: Interval
    trials: int
    seconds: float
    limit: float | None = None
    own_batch: float | None = None

    @property
    def exceeded(self) -> bool:
        """Whether the bad end of the interval is not at or below the limit."""
        return self.limit is not None and not self.advantage_ci[1] <= self.limit

    def __str__(self) -> str:
        low, high = self.advantage_ci
        limit = "" if self.limit is None else f", limit {self.limit:.2f}"
        own = "" if self.own_batch is None else f"; of the real batch {percent(self.own_batch)}"
        return (
            f"step {self.step}: {self.attack} reads {percent(self.asr)} of the labels, blind "
            f"{percent(self.blind_asr)}: advantage {self.advantage:.2f} ({low:.2f} to {high:.2f})"
            f"{limit}{own}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


class LeakageWarning(UserWarning):
    """A monitor with ``action="warn"`` has measured more than its limit."""


class LeakageError(RuntimeError):
    """A monitor with ``action="block"`` has measured more than its limit; nothing was sent.

    Args:
        leakage: What was measured.
    """

    def __init__(self, leakage: Leakage) -> None:
        super().__init__(
            f"blocked, nothing was sent: {leakage}. Strengthen the defence or raise max_advantage"
        )
        self.leakage = leakage
