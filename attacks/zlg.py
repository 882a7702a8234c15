"""ZLG: label counts from row sums, given what the model does with noise or with own data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
from torch import Tensor, nn

from gradguard.attacks.forward import HeadPass, attacker_copy, head_pass
from gradguard.attacks.messages import as_counts, batch_sizes, row_sums
from gradguard.attacks.received import received_model, tells_the_received_model
from gradguard.attacks.rounding import Floats, round_to_batch
from gradguard.attacks.threat import Knowledge, NotApplicableError, Observation, require

SOURCES = ("noise", "auxiliary")
NOISE_DRAWS = 256
# The received model is forwarded once per message: a thousand images each would take too long.
RECEIVED_INPUTS = 128


@dataclass(frozen=True)
class ZLG:
    """Counts ``n_c = B (p_c - g_c / O)``, with mean confidence and feature sum forwarded.

    ``g_c`` is the row sum of the head's weight gradient, ``p_c`` the mean softmax output and ``O``
    the mean over examples of the sum of the head's input. It is an identity where all examples of
    the batch have the same feature sum. ``"noise"`` forwards random inputs and needs no data (zero
    shot), ``"auxiliary"`` the attacker's images (ZLG+). No bias is read.

    A message of several local steps with a learning rate tells the model at the end. ``p`` and
    ``O`` are then interpolated linearly between both models, and the counts of the steps averaged.

    Guarantees:

    - exact on an undefended gradient, given the batch's own mean confidence and a common feature
      sum;
    - with ``"noise"``, no auxiliary example is read: where ``input_shape`` is not given, the shape
      and number type of the auxiliary inputs are all that is used of them.

    Not guaranteed: anything where feature sums scatter around zero, as with tanh.

    Args:
        source: ``"noise"`` (uniform on [0, 1), 256 draws) or ``"auxiliary"``.
        input_shape: Shape of one input, such as ``(1, 28, 28)``; ``None`` takes the auxiliary
            inputs' shape. Only for noise.
        head: Name of the output layer, where shape and position would mislead.

    Raises:
        NotApplicableError: The features sum to zero on average, so that row sums say nothing.
        ValueError: The source is none of these.

    Source: Geng et al., "Towards General Deep Leakage in Federated Learning", 2021,
    arXiv:2110.09074; several steps by Dimitrov et al., "Data Leakage in Federated Averaging", 2022.
    """

    source: str = "noise"
    _: KW_ONLY
    input_shape: tuple[int, ...] | None = None
    head: str | None = None

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ValueError(f"source must be one of {', '.join(SOURCES)}, got {self.source!r}")

    @property
    def needs(self) -> frozenset[str]:
        known = {"model", "num_classes"}
        shaped = self.source == "noise" and self.input_shape is not None
        return frozenset(known if shaped else known | {"auxiliary"})

    def fit(self, knowledge: Knowledge) -> FittedZLG:
        require(knowledge, self)
        assert knowledge.model is not None  # for the type checker; require has raised
        assert knowledge.num_classes is not None
        inputs, seed = self._inputs(knowledge), knowledge.seed
        model = attacker_copy(knowledge.model)
        passed = head_pass(
            model, inputs, num_classes=knowledge.num_classes, head=self.head, seed=seed
        )
        # Drawn, not the first: auxiliary data may be sorted by class.
        rows = np.random.default_rng(seed % 2**63).permutation(len(inputs))[:RECEIVED_INPUTS]
        before = HeadPass(passed.probabilities[rows], passed.feature_sums[rows])
        start = means(passed)
        if start.features == 0:
            raise NotApplicableError(
                "the features at the output layer sum to zero on average: "
                "row sums of its gradient then say nothing about labels"
            )
        return FittedZLG(
            start,
            model=model,
            inputs=inputs[torch.from_numpy(rows)],
            before=means(before),
            seed=seed,
            head=self.head,
        )

    def _inputs(self, knowledge: Knowledge) -> Tensor:
        if self.source == "auxiliary":
            assert knowledge.auxiliary is not None
            return knowledge.auxiliary[0]
        rng = torch.Generator().manual_seed(knowledge.seed % 2**63)
        if knowledge.auxiliary is not None:
            like = knowledge.auxiliary[0]
            shape, dtype = tuple(like.shape[1:]), like.dtype
        else:
            assert knowledge.model is not None
            shape, dtype = (), next(knowledge.model.parameters()).dtype
        return torch.rand(NOISE_DRAWS, *(self.input_shape or shape), generator=rng).to(dtype)


@dataclass(frozen=True)
class MeanPass:
    """What ZLG needs of a model.

    Args:
        confidence: Mean softmax output per class.
        features: Mean over the inputs of the sum of the head's input.
    """

    confidence: tuple[float, ...]
    features: float


def means(passed: HeadPass) -> MeanPass:
    """Averages over the examples."""
    confidence = tuple(passed.probabilities.mean(axis=0).tolist())
    return MeanPass(confidence, float(passed.feature_sums.mean()))


@dataclass(frozen=True, eq=False)
class FittedZLG:
    """The identity with given means, and what it takes to repeat them on a received model.

    Args:
        start: Means on the model before the round.
        model: That model.
        inputs: What to forward through a received model.
        before: Means of these inputs on ``model``.
        seed: Of the model's own randomness.
    """

    start: MeanPass
    _: KW_ONLY
    model: nn.Module
    inputs: Tensor
    before: MeanPass
    seed: int = 0
    head: str | None = None

    def infer(self, observations: Sequence[Observation]) -> Tensor:
        sizes = batch_sizes(observations)
        sums = row_sums(observations, self.head)
        classes = len(self.start.confidence)
        if sums.shape[1] != classes:
            raise ValueError(f"fitted for {classes} classes, got {sums.shape[1]}")
        shares = np.stack([self._shares(o, g) for o, g in zip(observations, sums, strict=True)])
        return as_counts(round_to_batch(sizes[:, None] * shares, sizes))

    def _shares(self, observation: Observation, sums: Floats) -> Floats:
        """Estimated ``n / B`` of one message."""
        if not tells_the_received_model(observation):
            shares: Floats = np.array(self.start.confidence) - sums / self.start.features
            return shares
        passed = head_pass(
            received_model(self.model, observation),
            self.inputs,
            num_classes=len(sums),
            head=self.head,
            seed=self.seed,
        )
        after = means(passed)
        # Gradients are taken before each step, so that the last one is not at the end.
        moved = np.arange(observation.local_steps) / observation.local_steps
        features = self.before.features + moved * (after.features - self.before.features)
        # Where the feature sum passes or reaches zero on the way, one step near it would be all.
        moved = moved[np.abs(features) >= 1e-3 * abs(self.before.features)]
        features = self.before.features + moved * (after.features - self.before.features)
        change = np.array(after.confidence) - np.array(self.before.confidence)
        confidence = np.array(self.before.confidence) + moved.mean() * change
        mean: Floats = confidence - sums * (1 / features).mean()
        return mean
