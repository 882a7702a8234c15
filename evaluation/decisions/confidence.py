"""How far an attacker's answer about one class is to be believed, counted on simulated messages."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from gradguard.evaluation.metrics import Interval


@dataclass(frozen=True)
class ClassReading:
    """What the attacker says of one class, and of how many simulated messages that was true.

    Said is "at least one label of this class" where ``count`` is 1 or more, and "none" where it is
    0. Of ``said`` simulated messages of which the attacker said the same, ``right`` had it so.

    Args:
        label: The class.
        count: How many labels of it the attacker answers.
        base: Of all simulated messages, the share for which the same holds: what is known without
            looking.

    >>> ClassReading(label=3, count=2, said=40, right=38, base=0.4).confidence
    0.95
    """

    label: int
    count: int
    said: int
    right: int
    base: float

    @property
    def confidence(self) -> float | None:
        """The share that was right; ``None`` where the attacker never said so in simulations."""
        return self.right / self.said if self.said else None

    @property
    def ci(self) -> Interval:
        """The exact 95 % interval of Clopper and Pearson; 0 to 1 where nothing was counted."""
        return exact_interval(self.right, self.said)


def exact_interval(right: int, of: int) -> Interval:
    """95 % interval of a share: holds the truth in at least 95 % of samples, however small.

    C. J. Clopper and E. S. Pearson, "The use of confidence or fiducial limits illustrated in the
    case of the binomial", Biometrika 26 (1934).

    >>> low, high = exact_interval(38, 40)
    >>> round(low, 2), round(high, 2)
    (0.83, 0.99)
    """
    low = float(stats.beta.ppf(0.025, right, of - right + 1)) if right else 0.0
    high = float(stats.beta.ppf(0.975, right + 1, of - right)) if right < of else 1.0
    return low, high


def class_readings(
    counts: np.ndarray, answers: np.ndarray, truth: np.ndarray
) -> tuple[ClassReading, ...]:
    """One reading per class.

    Args:
        counts: What the attacker answers to the message, shape ``(classes,)``.
        answers: What it answered to simulated messages, ``(messages, classes)``.
        truth: What was true of them.
    """
    readings = []
    for label, count in enumerate(counts.tolist()):
        present = (truth[:, label] >= 1) == (count >= 1)
        same = (answers[:, label] >= 1) == (count >= 1)
        readings.append(
            ClassReading(
                label=label,
                count=int(count),
                said=int(same.sum()),
                right=int((same & present).sum()),
                base=float(present.mean()),
            )
        )
    return tuple(readings)
