"""Label counts from the output layer's bias gradient: exact but for the mean confidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
from torch import Tensor

from gradguard.attacks.forward import head_pass
from gradguard.attacks.head import find_head
from gradguard.attacks.messages import as_counts, batch_sizes, head_biases
from gradguard.attacks.rounding import round_to_batch
from gradguard.attacks.threat import Knowledge, NotApplicableError, Observation, require


@dataclass(frozen=True)
class BiasCount:
    """Counts ``n = B (p - db)``, with the batch's mean confidence ``p`` taken from auxiliary data.

    Under mean softmax cross-entropy ``db_c = (1/B) sum_i p_ic - n_c / B`` is an identity. All the
    attacker lacks is the batch's mean softmax output, which in an untrained model hardly depends
    on the batch.

    Guarantees:

    - exact on an undefended gradient, given the batch's own mean confidence.

    Not for messages that were rescaled: a clipped gradient reads as a batch near ``p``.

    Args:
        head: Name of the output layer, where shape and position would mislead.

    Raises:
        NotApplicableError: The output layer has no bias.
    """

    head: str | None = None

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"model", "auxiliary", "num_classes"})

    def fit(self, knowledge: Knowledge) -> FittedBiasCount:
        require(knowledge, self)
        assert knowledge.model is not None  # for the type checker; require has raised
        assert knowledge.auxiliary is not None
        assert knowledge.num_classes is not None
        parameters = dict(knowledge.model.named_parameters())
        found = find_head(parameters, knowledge.num_classes, self.head)
        if found.bias is None:
            raise NotApplicableError(f"the output layer {found.layer!r} has no bias to read")
        passed = head_pass(
            knowledge.model,
            knowledge.auxiliary[0],
            num_classes=knowledge.num_classes,
            head=self.head,
            seed=knowledge.seed,
        )
        return FittedBiasCount(tuple(passed.probabilities.mean(axis=0).tolist()), head=self.head)


@dataclass(frozen=True)
class FittedBiasCount:
    """The identity, with a given mean confidence per class."""

    confidence: tuple[float, ...]
    _: KW_ONLY
    head: str | None = None

    def infer(self, observations: Sequence[Observation]) -> Tensor:
        sizes = batch_sizes(observations)
        biases = head_biases(observations, self.head)
        if biases.shape[1] != len(self.confidence):
            raise ValueError(f"fitted for {len(self.confidence)} classes, got {biases.shape[1]}")
        estimates = sizes[:, None] * (np.array(self.confidence) - biases)
        return as_counts(round_to_batch(estimates, sizes))
