"""The adaptive attack: rehearse on the client's own code, learn to read, choose honestly.

Wu et al., Learning To Invert: Simple Adaptive Attacks for Gradient Inversion in Federated Learning
(UAI 2023, arXiv:2210.10880) showed that an attacker who trains through the defence breaks defences
that stop every fixed formula. Here the target is the label counts, the defence is a black box, and
what is learned is a bank of regressions of which the best on rehearsed messages is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradguard.attacks.learning.bank import Candidate
from gradguard.attacks.learning.practice import ONE_OF_MANY, clearly_above, overlap, practise
from gradguard.attacks.learning.readings import Reader
from gradguard.attacks.messages import require_fitted
from gradguard.attacks.rounding import round_to_batch
from gradguard.attacks.threat import Knowledge, Observation, require


@dataclass(frozen=True)
class LearnedRegression:
    """Regress label counts from defended messages, by the best of a bank of feature maps.

    Auxiliary batches are pushed through the client's own defence. One set of them fits every map
    of :data:`~gradguard.attacks.learning.bank.MAPS`, another that shares no image with it chooses.
    Half of the fitting batches come from ``knowledge.composition`` where it is known, the others
    from a broad mixture of compositions, so that a batch unlike the expected ones is still read.

    Guarantees:

    - the choice and the fit share no image;
    - never below blind: the best constant guess is kept unless a map beats it on the judging
      batches by more than two standard errors;
    - a message multiplied by a constant is read as well as the message;
    - memory does not grow with the model: at most 32,768 coordinates of the head (in whole
      columns) and as many of the rest are kept per message, and per-class summaries of all of it.

    Not guaranteed: that a stronger reader does not exist. A low score is evidence about this
    attack first, and about the defence second. A class without auxiliary example was never
    rehearsed, and batches with such classes may be read worse than a blind guess.

    Args:
        simulated: Rehearsed batches to fit on, at least 40; 30 % more choose.
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

    def fit(self, knowledge: Knowledge) -> FittedRegression:
        require(knowledge, self)
        done = practise(knowledge, self.simulated, self.head)
        size = done.rehearsal.batch_size
        blind = overlap(np.tile(done.blind, (len(done.truth), 1)), done.truth)
        chosen, best = None, blind
        for candidate, shares in zip(done.candidates, done.answers, strict=False):
            found = overlap(round_to_batch(shares * size, size), done.truth)
            if found.mean() > best.mean() and clearly_above(found, blind, errors=ONE_OF_MANY):
                chosen, best = candidate, found
        return FittedRegression(done.reader, chosen, done.blind, size)


@dataclass(frozen=True, eq=False)
class FittedRegression:
    """A reader of messages and the chosen map; ``chosen`` is None where nothing beat blind."""

    reader: Reader
    chosen: Candidate | None
    blind: np.ndarray
    batch_size: int

    def infer(self, observations: Sequence[Observation]) -> Tensor:
        require_fitted(observations, self.batch_size, len(self.blind))
        # Read also where the answer is known, so that a message with NaN is refused and not scored.
        readings = self.reader.read(seen.update for seen in observations)
        if self.chosen is None:
            return torch.from_numpy(np.tile(self.blind, (len(observations), 1)))
        shares = self.chosen.predict(readings)
        return torch.from_numpy(round_to_batch(shares * self.batch_size, self.batch_size))
