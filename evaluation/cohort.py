"""The other clients of a cohort, of whose messages the server sees the sum.

Their batches have the composition of the client that is asked about. A rehearsal with a cohort of
64 would take 63 backward passes; as other clients differ by their data only, they are drawn from
a large number of them, whose raw gradients are kept as far as there is room. Every message is
released afresh.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from gradguard.evaluation.batches import Batch, draw_batches
from gradguard.evaluation.data import Data
from gradguard.evaluation.running.memo import GradientMemo, Grads, ReleasingClient
from gradguard.evaluation.seeding import derive

POPULATION = 2048
"""How many other clients there are to draw from; a few would be a pattern to be learned."""


@dataclass(frozen=True, eq=False)
class OtherClients:
    """The population that a cohort's other clients are drawn from, anew in every round.

    Guarantees:

    - the clients of one cohort are different ones, and so is the noise of each;
    - the same seed gives the same population, for every defence.

    Args:
        data: Whose images they hold.
        pool: Indices into ``data``.
        composition: Of their batches.
        batch_size: Of their batches.
        seed: Decides the population.
        room: Bytes of raw gradients to keep; those beyond it are computed again each time.
    """

    data: Data
    pool: np.ndarray
    composition: str | None
    batch_size: int
    seed: int
    room: int
    _known: dict[tuple[str, int], Grads] = field(default_factory=dict)

    def messages(
        self, client: ReleasingClient, number: int, rng: np.random.Generator
    ) -> Iterator[dict[str, Tensor]]:
        """The first messages of ``number`` of them, one at a time."""
        for index in rng.choice(max(POPULATION, 2 * number), number, replace=False):
            grads = self._gradients(client, int(index))
            yield client.release(grads, batch_size=self.batch_size)

    def batch(self, index: int) -> Batch:
        """The data of one of them."""
        (found,) = draw_batches(
            self.data,
            self.pool,
            composition=self.composition,
            batch_size=self.batch_size,
            number=1,
            seed=derive(self.seed, index),
        )
        return found

    def _gradients(self, client: ReleasingClient, index: int) -> Grads:
        key = (client.kind, index)
        if key in self._known:
            return self._known[key]
        batch = self.batch(index)
        # An empty memo keeps nothing, but makes dropout depend on the batch alone.
        grads = GradientMemo(0).gradients(client, batch.inputs, batch.labels)
        size = sum(g.numel() * g.element_size() for g in grads if g is not None)
        if (len(self._known) + 1) * size <= self.room:
            self._known[key] = grads
        return grads
