"""What an attacker who learns practises on: batches of its own images, to fit and to judge by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gradguard.attacks.simulation import Message, Pool, rehearse
from gradguard.attacks.threat import Client, Knowledge

FIT_FRACTION = 0.75  # of the auxiliary images; the others judge


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """Batches to fit on and batches to judge by, from auxiliary images split between the two."""

    client: Client
    composition: str | None
    batch_size: int
    seed: int
    pool: Pool
    fit_pool: Pool
    judge_pool: Pool

    @classmethod
    def of(cls, known: Knowledge) -> Rehearsal:
        """From a ``Knowledge`` that has auxiliary data, the client and the sizes."""
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
        """Classes of the task."""
        return len(self.pool.by_class)

    def rng(self, purpose: int) -> np.random.Generator:
        """A stream per purpose, so that the batches are the same whatever the defence sends back:
        a client that remembers gradients of known batches then computes each of them once."""
        return np.random.default_rng([self.seed, self.batch_size, purpose])

    def fitting(self, trials: int) -> Iterator[tuple[Message, np.ndarray]]:
        """Half of the expected composition, where it is known, and half of the broad mixture."""
        rng = self.rng(2)
        known = trials // 2 if self.composition is not None else 0
        for composition, share in ((self.composition, known), (None, trials - known)):
            yield from rehearse(
                self.client, self.fit_pool, composition, self.batch_size, share, rng
            )

    def judging(self, trials: int) -> Iterator[tuple[Message, np.ndarray]]:
        """Of the expected composition, from images that no fitting batch holds."""
        yield from rehearse(
            self.client, self.judge_pool, self.composition, self.batch_size, trials, self.rng(3)
        )
