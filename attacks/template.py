"""Template regression: explain a message as a sum of average class gradients.

A batch's gradient is linear in its label counts, whatever the layer: with within-class means
``T_c`` of the gradient, ``B g = sum_c n_c T_c`` on average. So any part of a message tells the
labels, also when the output layer is withheld or one coordinate in a thousand is sent. Restricted
to the bias this is a count from confidences, to row sums it is LLG+.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, replace

import numpy as np
from torch import Tensor

from gradguard.attacks.coordinates import Coordinates
from gradguard.attacks.messages import as_counts, batch_sizes
from gradguard.attacks.rounding import Floats, Ints
from gradguard.attacks.templates.channel import drops_coordinates, learn_channel, read_message
from gradguard.attacks.templates.decoding import Decoder, LeastSquares, Posterior
from gradguard.attacks.templates.groundwork import Groundwork, groundwork, names_of, restricted
from gradguard.attacks.templates.posterior import draw_prior
from gradguard.attacks.templates.simplex_regression import normal_equations
from gradguard.attacks.threat import Knowledge, Observation, require

PARTS = ("bias", "head", "body", "all")

RIDGES = (1e-6, 1e-2, 1e-1)
# Relative to the mean variance: a coordinate that never varied among the attacker's examples must
# not outvote all others.
FLOOR = 1e-3
# Classes times batch beyond which no posterior is computed: 500 draws would take gigabytes.
WEIGHED = 2**17


@dataclass(frozen=True)
class TemplateRegression:
    """Fit class templates to what a message still says, weighing each coordinate by its noise.

    ``argmin over n >= 0, sum n = B of sum_p (B g_p - s_p sum_c n_c T_cp)^2 / (s_p^2 V_p + B r_p)``
    where ``T`` and ``V`` are the class means and the within-class variance of per-example
    gradients on auxiliary data, and ``s`` and ``r`` are the defence's scale and noise variance,
    learned from its black box. With ``n`` labels the sum of gradients ``B g`` has variance
    ``B s^2 V + B^2 r``; the common factor ``B`` is left out.

    Four things are chosen by success on rehearsed batches: whether zeros count as values or as
    not sent, whether each message's scale is known or free, and how far to shrink towards an even
    spread. Rehearsed batches follow ``knowledge.composition``.

    Memory: at most 65,536 coordinates of the head's weight and 65,536 of all other layers are kept,
    all of them where they fit. Beyond that one half is what carries most energy in a few messages
    of the client, which follows what survives a sparsifier, and the other half is drawn at random
    under ``knowledge.seed``, so that no layer and no small magnitude is missed as a rule. Random
    projections were not an option: they would hide which coordinates survived.

    Guarantees:

    - the same knowledge and client give the same answer;
    - memory is bounded by classes times 131,072 coordinates, beside a few copies of the model;
    - a message multiplied by a constant is read as well as the message;
    - a class without auxiliary example is never answered.

    Not guaranteed: anything about trained models, where few examples carry most of the magnitude
    and class means explain little. There a learned attack is stronger.

    Args:
        coordinates: ``"bias"`` and ``"head"`` of the output layer, ``"body"`` for all other layers,
            or ``"all"``.
        head: Name of the output layer, where shape and position would mislead.

    Raises:
        NotApplicableError: The model has no such coordinates.
        ValueError: ``coordinates`` is none of these.
    """

    coordinates: str = "all"
    _: KW_ONLY
    head: str | None = None

    def __post_init__(self) -> None:
        if self.coordinates not in PARTS:
            raise ValueError(
                f"coordinates must be one of {', '.join(PARTS)}, got {self.coordinates!r}"
            )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"model", "auxiliary", "client", "num_classes", "batch_size"})

    def fit(self, knowledge: Knowledge) -> FittedTemplateRegression:
        require(knowledge, self)
        # Before the expensive part, so that what cannot be mounted costs nothing.
        names = names_of(knowledge, self.head, self.coordinates)
        return _best_on_rehearsal(restricted(groundwork(knowledge, self.head), names), knowledge)


@dataclass(frozen=True, eq=False)
class FittedTemplateRegression:
    """Templates as they leave the defence, and how to fit them.

    Args:
        coordinates: What to read of a message.
        templates: Scaled class means, shape ``(present classes, coordinates)``.
        classes: Which classes these are.
        weights: Inverse variances, shape ``(coordinates,)``.
        masked: Leave out coordinates that are zero in a message.
        decoder: From normal equations to counts.
        num_classes: Classes of the task.
        batch_size: Examples behind each message.
    """

    coordinates: Coordinates
    templates: np.ndarray
    classes: Ints
    weights: np.ndarray
    _: KW_ONLY
    masked: bool
    decoder: Decoder
    num_classes: int
    batch_size: int

    def infer(self, observations: Sequence[Observation]) -> Tensor:
        return as_counts(self.counts(*self._systems(observations)))

    def estimate(self, observations: Sequence[Observation]) -> Floats:
        """The counts before they are made whole, for attacks that build on this one."""
        a, b = self._systems(observations)
        every = np.zeros((len(b), self.num_classes))
        every[:, self.classes] = self.decoder.estimate(a, b, self.batch_size)
        return every

    def _systems(self, observations: Sequence[Observation]) -> tuple[Floats, Floats]:
        sizes = batch_sizes(observations)
        if observations[0].num_classes != self.num_classes or (sizes != self.batch_size).any():
            raise ValueError(
                f"fitted for batches of {self.batch_size} and {self.num_classes} classes, got "
                f"{sorted(set(sizes.tolist()))} and {observations[0].num_classes}; "
                "fit again with that Knowledge"
            )
        messages = [read_message(o.update, self.coordinates) for o in observations]
        return self.system(np.stack(messages))

    def system(self, messages: np.ndarray) -> tuple[Floats, Floats]:
        """Normal equations of the sums of gradients ``B g``."""
        return normal_equations(
            messages * np.float32(self.batch_size),
            self.templates,
            self.weights,
            masked=self.masked,
        )

    def counts(self, a: Floats, b: Floats) -> Ints:
        """Counts of all classes from the normal equations of those with examples."""
        every = np.zeros((len(b), self.num_classes), dtype=np.int64)
        every[:, self.classes] = self.decoder.decode(a, b, self.batch_size)
        return every


def _best_on_rehearsal(ground: Groundwork, knowledge: Knowledge) -> FittedTemplateRegression:
    """The variant with the highest success on the rehearsed batches; the first one among equals."""
    counts = ground.rehearsal.counts
    best, best_overlap = None, -1
    for fitted in _channels(ground, knowledge):
        a, b = fitted.system(ground.rehearsal.sent)
        for decoder in _decoders(ground, knowledge):
            variant = replace(fitted, decoder=decoder)
            overlap = int(np.minimum(variant.counts(a, b), counts).sum())
            if overlap > best_overlap:
                best, best_overlap = variant, overlap
            if best is not None and best_overlap == counts.sum():
                return best
    assert best is not None  # the loop always has a variant
    return best


def _channels(ground: Groundwork, knowledge: Knowledge) -> Iterator[FittedTemplateRegression]:
    yield _fitted(ground, knowledge, masked=False)
    if drops_coordinates(ground.rehearsal):
        yield _fitted(ground, knowledge, masked=True)


def _decoders(ground: Groundwork, knowledge: Knowledge) -> list[Decoder]:
    assert knowledge.batch_size is not None  # for the type checker; fit has checked
    share = ground.class_prior
    if knowledge.composition not in ("iid", None):
        # Only these depend on it. Without the difference between splits the draws are remembered.
        share = (1 / len(share),) * len(share)
    squares: list[Decoder] = [LeastSquares(ridge=ridge, free=False) for ridge in RIDGES]
    squares.append(LeastSquares(ridge=RIDGES[0], free=True))
    if len(share) * knowledge.batch_size > WEIGHED:
        return squares
    prior = draw_prior(knowledge.composition, knowledge.batch_size, share)
    weighed = [Posterior(prior, t, extended=True) for t in (1.0, 4.0, 16.0)]
    confined = [Posterior(prior, t, extended=False) for t in (4.0, 64.0)]
    return [*squares, *weighed, *confined]


def _fitted(ground: Groundwork, knowledge: Knowledge, *, masked: bool) -> FittedTemplateRegression:
    assert knowledge.num_classes is not None  # for the type checker; fit has checked
    assert knowledge.batch_size is not None
    channel = learn_channel(ground.rehearsal, ground.tensors, masked=masked)
    variance = (
        channel.scale.astype(np.float64) ** 2 * ground.gradients.variance
        + knowledge.batch_size * channel.noise
    )
    floored = np.maximum(variance, FLOOR * variance.mean())
    weights = np.where(floored > 0, 1.0 / np.where(floored > 0, floored, 1.0), 1.0)
    return FittedTemplateRegression(
        ground.coordinates,
        ground.gradients.mean * channel.scale,
        ground.gradients.classes,
        weights.astype(np.float32),
        masked=masked,
        decoder=LeastSquares(ridge=RIDGES[0], free=False),
        num_classes=knowledge.num_classes,
        batch_size=knowledge.batch_size,
    )
