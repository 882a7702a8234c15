"""The strongest attack here: every reader of the bank and every other attack, stacked.

No attack is best everywhere, and on most defences several are right about different things. The
answers of all of them on rehearsed messages are combined by non-negative least squares (stacking:
Wolpert, Stacked Generalization, Neural Networks 5, 1992; with non-negative weights: Breiman,
Stacked Regressions, Machine Learning 24, 1996), and rounded for the highest expected overlap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradguard.attacks.learning.bank import Candidate
from gradguard.attacks.learning.practice import estimated, practise
from gradguard.attacks.learning.readings import Reader
from gradguard.attacks.learning.stacking import Stack, choose_stack
from gradguard.attacks.messages import require_fitted
from gradguard.attacks.threat import FittedAttack, Knowledge, Observation, require


@dataclass(frozen=True)
class Ensemble:
    """Stack all readers and attacks; keep the best single one where that is clearly better.

    The bank of :class:`~gradguard.attacks.LearnedRegression` is fitted on rehearsed messages. Its
    readers, the attacks in :data:`~gradguard.attacks.learning.practice.MEMBERS` and the blind
    guess answer other rehearsed messages, which share no image with those. On these answers the
    weights are fitted, the rounding is calibrated, and the stack is compared with each single
    member, out of fold.

    Guarantees:

    - answers are projected to the simplex before they are stacked;
    - never below blind: the best constant guess is kept unless the stack beats it on the judging
      messages by more than one standard error, or a single member by more than two;
    - the best single member is used where it beats the stack by more than one standard error, or
      where fewer than 100 auxiliary images judge;
    - a message multiplied by a constant is read as well as the message.

    Not guaranteed: that no stronger attacker exists. What is found is a lower bound on leakage.

    Args:
        simulated: Rehearsed batches to fit on, at least 40; 30 % more judge.
        head: Module name of the output layer, where shape and position would mislead.

    Raises:
        ValueError: From ``fit``, when knowledge is missing; from ``infer``, when an observation's
            batch size, classes or tensors are not those it was fitted for; from both, when a
            message is not finite.
    """

    simulated: int = 1000
    head: str | None = None

    def __post_init__(self) -> None:
        if not self.simulated >= 40:
            raise ValueError(f"simulated must be at least 40 batches, got {self.simulated!r}")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"auxiliary", "client", "num_classes", "batch_size"})

    def fit(self, knowledge: Knowledge) -> FittedEnsemble:
        require(knowledge, self)
        done = practise(knowledge, self.simulated, self.head)
        return FittedEnsemble(
            done.reader, done.candidates, done.members, done.blind, choose_stack(done)
        )


@dataclass(frozen=True, eq=False)
class FittedEnsemble:
    """Members and their weights.

    Args:
        reader: Reads messages for the candidates.
        candidates: The bank's readers.
        members: Other attacks.
        blind: Counts of the best constant guess.
        stack: Weights of the candidates, the members and the blind guess, in this order.
    """

    reader: Reader
    candidates: tuple[Candidate, ...]
    members: tuple[FittedAttack, ...]
    blind: np.ndarray
    stack: Stack

    def infer(self, observations: Sequence[Observation]) -> Tensor:
        size = int(self.blind.sum())
        require_fitted(observations, size, len(self.blind))
        return torch.from_numpy(self.stack.counts(list(self._answers(observations, size))))

    def _answers(self, observations: Sequence[Observation], size: int) -> Iterator[np.ndarray]:
        """Shares from each part of the stack; zeros from parts without weight, which stay idle."""
        # Read even if only the blind guess has weight: a message with NaN is refused, not scored.
        readings = self.reader.read(seen.update for seen in observations)
        parts = len(self.candidates) + len(self.members)
        idle = np.zeros((len(observations), len(self.blind)))
        for i in range(parts):
            if not self.stack.weights[i]:
                yield idle
            elif i < len(self.candidates):
                yield self.candidates[i].predict(readings)
            else:
                yield estimated(self.members[i - len(self.candidates)], observations) / size
        yield np.tile(self.blind / size, (len(observations), 1))
