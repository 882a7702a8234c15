"""The adaptive attack: rehearse on the client's own code, learn to read, choose honestly.

Wu et al., Learning To Invert: Simple Adaptive Attacks for Gradient Inversion in Federated Learning
(UAI 2023, arXiv:2210.10880) showed that an attacker who trains through the defence breaks defences
that stop every fixed formula. Here the target is the label counts, the defence is a black box, and
what is learned is a bank of regressions of which the best on rehearsed messages is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradguard.attacks.baselines import BestConstant
from gradguard.attacks.learning.bank import Candidate, fit_bank
from gradguard.attacks.learning.readings import Reader, Readings
from gradguard.attacks.rounding import round_to_batch
from gradguard.attacks.simulation import Message, Pool, rehearse
from gradguard.attacks.threat import Client, Knowledge, Observation, require

PILOTS = 8
COORDINATES = 2**15  # of the head and of the body, each; 4 bytes per coordinate and message
FIT_FRACTION = 0.75  # of the auxiliary images; the others judge


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
      batches by more than one standard error;
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
        stage = _Rehearsal.of(knowledge)
        classes, batch_size = stage.classes, stage.batch_size
        pilots = [message for message, _ in stage.fitting(PILOTS)]
        reader = Reader.fit(pilots, classes, COORDINATES, stage.rng(1), self.head)
        fitted, fitted_counts = _read(reader, stage.fitting(self.simulated))
        judged, judged_counts = _read(reader, stage.judging(round(0.3 * self.simulated)))

        def overlap(shares: np.ndarray) -> np.ndarray:
            return _overlap(_whole(shares, batch_size), judged_counts)

        def score(shares: np.ndarray) -> float:
            return float(overlap(shares).mean())

        blind, _ = BestConstant().fit(knowledge).best(batch_size)
        blind_overlap = _overlap(np.tile(blind, (len(judged), 1)), judged_counts)
        chosen, best = None, blind_overlap
        shares = fitted_counts / batch_size
        for candidate in fit_bank(fitted, shares, judged, score, stage.seed):
            found = overlap(candidate.predict(judged))
            if found.mean() > best.mean() and _clearly_above(found, blind_overlap):
                chosen, best = candidate, found
        return FittedRegression(reader, chosen, blind, batch_size)


@dataclass(frozen=True, eq=False)
class FittedRegression:
    """A reader of messages and the chosen map; ``chosen`` is None where nothing beat blind."""

    reader: Reader
    chosen: Candidate | None
    blind: np.ndarray
    batch_size: int

    def infer(self, observations: Sequence[Observation]) -> Tensor:
        if not observations:
            raise ValueError("expected at least one observation, got none")
        for seen in observations:
            if (seen.batch_size, seen.num_classes) != (self.batch_size, len(self.blind)):
                raise ValueError(
                    f"fitted for batches of {self.batch_size} and {len(self.blind)} classes, got "
                    f"{seen.batch_size} and {seen.num_classes}; fit again with that Knowledge"
                )
        # Read also where the answer is known, so that a message with NaN is refused and not scored.
        readings = self.reader.read(seen.update for seen in observations)
        if self.chosen is None:
            return torch.from_numpy(np.tile(self.blind, (len(observations), 1)))
        return torch.from_numpy(_whole(self.chosen.predict(readings), self.batch_size))


@dataclass(frozen=True, eq=False)
class _Rehearsal:
    """Batches to fit on and batches to judge by, from auxiliary images split between the two."""

    client: Client
    composition: str | None
    batch_size: int
    seed: int
    pool: Pool
    fit_pool: Pool
    judge_pool: Pool

    @classmethod
    def of(cls, known: Knowledge) -> _Rehearsal:
        # `require` has refused anything else; these tell the type checker.
        assert known.auxiliary is not None
        assert known.client is not None
        assert known.num_classes is not None
        assert known.batch_size is not None
        pool = Pool.of(*known.auxiliary, known.num_classes)
        seed = known.seed % 2**64
        halves = pool.split(FIT_FRACTION, np.random.default_rng([seed, 0]))
        return cls(known.client, known.composition, known.batch_size, seed, pool, *halves)

    @property
    def classes(self) -> int:
        return len(self.pool.by_class)

    def rng(self, purpose: int) -> np.random.Generator:
        """A stream per purpose, so that the batches are the same whatever the defence sends back:
        a client that remembers gradients of known batches then computes each of them once."""
        return np.random.default_rng([self.seed, self.batch_size, purpose])

    def fitting(self, trials: int) -> Iterator[tuple[Message, np.ndarray]]:
        rng = self.rng(2)
        known = trials // 2 if self.composition is not None else 0
        for composition, share in ((self.composition, known), (None, trials - known)):
            yield from rehearse(
                self.client, self.fit_pool, composition, self.batch_size, share, rng
            )

    def judging(self, trials: int) -> Iterator[tuple[Message, np.ndarray]]:
        yield from rehearse(
            self.client, self.judge_pool, self.composition, self.batch_size, trials, self.rng(3)
        )


def _read(
    reader: Reader, rehearsed: Iterator[tuple[Message, np.ndarray]]
) -> tuple[Readings, np.ndarray]:
    counts: list[np.ndarray] = []

    def messages() -> Iterator[Message]:
        for message, truth in rehearsed:
            counts.append(truth)
            yield message

    readings = reader.read(messages())
    return readings, np.stack(counts)


def _whole(shares: np.ndarray, batch_size: int) -> np.ndarray:
    return round_to_batch(shares * batch_size, batch_size)


def _overlap(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    overlap: np.ndarray = np.minimum(found, truth).sum(axis=1) / truth.sum(axis=1)
    return overlap


def _clearly_above(found: np.ndarray, blind: np.ndarray) -> bool:
    """Above blind by more than one standard error of the paired difference."""
    gain = found - blind
    return bool(gain.mean() > gain.std(ddof=1) / np.sqrt(len(gain)))
