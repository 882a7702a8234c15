"""RLU: label counts from the bias gradient and the errors that the model makes on each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor, nn

from gradguard.attacks.forward import attacker_copy, head_pass, labels_array
from gradguard.attacks.head import find_head
from gradguard.attacks.local_drift import centred, drift_gain, simulate_drift, step_weights
from gradguard.attacks.messages import as_counts, batch_sizes, head_biases, head_weights
from gradguard.attacks.received import received_model, tells_the_received_model
from gradguard.attacks.rounding import Floats, round_to_batch
from gradguard.attacks.threat import Knowledge, NotApplicableError, Observation, require

# The received model is forwarded once per message: a thousand images each would take too long.
RECEIVED_INPUTS = 128


@dataclass(frozen=True)
class RLU:
    """Solve ``sum_k n_k (S_k - e_k) = B db`` for counts, with ``S_k`` the mean confidences.

    ``S_k`` is the mean softmax output over auxiliary examples of class ``k``: what the model says
    of that class, errors included. Unlike a count from one common confidence it stays right on
    average while the model learns.

    A message of several local steps with a learning rate tells the model at the end. The drift of
    the logits over the steps is simulated from a guess of the counts and compared with the
    received model's on auxiliary data. Counts move from the most over- to the most under-estimated
    class, and the final counts are solved for with ``S`` averaged over the steps.

    Guarantees:

    - exact on an undefended gradient of a batch whose examples have their classes' mean
      confidences, where these are affinely independent;
    - the solution is the least-squares one over ``n >= 0, sum n = B``, with no weight to tune.

    Not for messages that were rescaled. Not guaranteed on a class without auxiliary example: it
    is taken to have the mean confidences of the others.

    Args:
        momentum: Of the client's SGD, in [0, 1); only for several local steps.
        rounds: How often counts may move.
        head: Name of the output layer, where shape and position would mislead.

    Raises:
        NotApplicableError: The output layer has no bias.
        ValueError: The momentum or the rounds are out of range.

    Source: Chen and Vikalo, "Recovering Labels from Local Updates in Federated Learning",
    ICML 2024. Ours takes empirical means where the paper fits a Gaussian to the logits, and adds
    the bias's own share to the drift.
    """

    momentum: float = 0.0
    _: KW_ONLY
    rounds: int = 5
    head: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum!r}")
        if not self.rounds >= 0:
            raise ValueError(f"rounds must not be negative, got {self.rounds!r}")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"model", "auxiliary", "num_classes"})

    def fit(self, knowledge: Knowledge) -> FittedRLU:
        require(knowledge, self)
        assert knowledge.model is not None  # for the type checker; require has raised
        assert knowledge.auxiliary is not None
        classes = knowledge.num_classes
        assert classes is not None
        found = find_head(dict(knowledge.model.named_parameters()), classes, self.head)
        if found.bias is None:
            raise NotApplicableError(f"the output layer {found.layer!r} has no bias to read")
        model, inputs = attacker_copy(knowledge.model), knowledge.auxiliary[0]
        labels = labels_array(knowledge.auxiliary[1], classes)
        passed = head_pass(
            model, inputs, num_classes=classes, head=self.head, seed=knowledge.seed
        ).probabilities
        # Drawn, not the first: auxiliary data may be sorted by class.
        rng = np.random.default_rng(knowledge.seed % 2**63)
        rows = rng.permutation(len(inputs))[:RECEIVED_INPUTS]
        logits = centred(passed)
        return FittedRLU(
            erroneous_confidence(passed, labels),
            settings=self,
            model=model,
            inputs=inputs[torch.from_numpy(rows)],
            labels=labels,
            logits=logits,
            mean_before=logits[rows].mean(axis=0),
            seed=knowledge.seed,
        )


def erroneous_confidence(probabilities: Floats, labels: np.ndarray) -> Floats:
    """Mean softmax output of each class's examples, shape ``(classes, classes)``.

    A class without examples gets the mean of the others.
    """
    members = (labels[:, None] == np.arange(probabilities.shape[1])).astype(np.float64)
    sizes = members.sum(axis=0)
    means: Floats = members.T @ probabilities / np.maximum(sizes, 1)[:, None]
    means[sizes == 0] = means[sizes > 0].mean(axis=0)
    return means


def solve_counts(confidence: Floats, bias: Floats) -> Floats:
    """The shares ``q >= 0, sum q = 1`` that minimise ``|sum_k q_k (S_k - e_k) - db|``.

    Args:
        confidence: ``S``, shape ``(classes, classes)``, rows over true classes.
        bias: The bias gradient ``db``, shape ``(classes,)``.

    >>> solve_counts(np.array([[0.8, 0.2], [0.4, 0.6]]), np.array([0.1, -0.1])).round(2).tolist()
    [0.5, 0.5]
    """
    classes = len(bias)
    # With sum q = 1 the right-hand side moves into the columns. The problem is then homogeneous,
    # and an extra row `weight * sum q = weight` of any weight gives the exact direction.
    columns = (confidence - np.eye(classes)).T - bias[:, None]
    weight = float(np.abs(columns).max())
    if weight == 0:
        return np.full(classes, 1 / classes)
    system = np.vstack([columns / weight, np.ones(classes)])
    found, _ = nnls(system, np.append(np.zeros(classes), 1.0), maxiter=100 * classes)
    shares: Floats = found / found.sum()
    return shares


@dataclass(frozen=True, eq=False)
class FittedRLU:
    """Confidences by class, and what it takes to follow local training.

    Args:
        confidence: ``S`` on the model before the round.
        settings: The attack.
        model: The model before the round.
        inputs: What to forward through a received model.
        labels: Auxiliary labels.
        logits: Centred logits of the auxiliary data, shape ``(examples, classes)``.
        mean_before: Mean centred logits of ``inputs`` on ``model``.
        seed: Of the model's own randomness.
    """

    confidence: Floats
    _: KW_ONLY
    settings: RLU
    model: nn.Module
    inputs: Tensor
    labels: np.ndarray
    logits: Floats
    mean_before: Floats
    seed: int

    def infer(self, observations: Sequence[Observation]) -> Tensor:
        sizes = batch_sizes(observations)
        biases = head_biases(observations, self.settings.head)
        if biases.shape[1] != len(self.confidence):
            raise ValueError(f"fitted for {len(self.confidence)} classes, got {biases.shape[1]}")
        weights = head_weights(observations, self.settings.head)
        shares = [
            self._drifted(o, bias, weight.detach().double().cpu().numpy())
            if tells_the_received_model(o)
            else solve_counts(self.confidence, bias)
            for o, bias, weight in zip(observations, biases, weights, strict=True)
        ]
        return as_counts(round_to_batch(sizes[:, None] * np.stack(shares), sizes))

    def _drifted(self, observation: Observation, bias: Floats, weight: Floats) -> Floats:
        """Shares of a message of several steps, by simulating the drift of the logits."""
        assert observation.learning_rate is not None  # tells_the_received_model
        steps, settings = observation.local_steps, self.settings
        speed = observation.learning_rate * drift_gain(weight, bias)
        # The reader divided by the number of steps; with momentum each counts more than once.
        bias = bias / step_weights(steps, settings.momentum).mean()
        target = self._received_drift(observation)
        amount = max(1, observation.batch_size // 32) / observation.batch_size
        guess = solve_counts(self.confidence, bias)
        confidence, drift = self._simulated(guess, speed, steps)
        for _ in range(settings.rounds):
            guess = _moved(guess, drift - target, amount)
            tried = self._simulated(guess, speed, steps)
            if not np.linalg.norm(tried[1] - target) < np.linalg.norm(drift - target):
                break
            confidence, drift = tried
        return solve_counts(confidence, bias)

    def _received_drift(self, observation: Observation) -> Floats:
        end = head_pass(
            received_model(self.model, observation),
            self.inputs,
            num_classes=len(self.confidence),
            head=self.settings.head,
            seed=self.seed,
        )
        drift: Floats = centred(end.probabilities).mean(axis=0) - self.mean_before
        return drift

    def _simulated(self, shares: Floats, speed: float, steps: int) -> tuple[Floats, Floats]:
        def confidence(drift: Floats) -> Floats:
            moved = np.exp(self.logits + drift)
            return erroneous_confidence(moved / moved.sum(axis=1, keepdims=True), self.labels)

        return simulate_drift(confidence, shares, speed, steps, self.settings.momentum)


def _moved(shares: Floats, excess: Floats, amount: float) -> Floats:
    """``amount`` from the class with most excess among those that have any to that with least."""
    moved = shares.copy()
    source = int(np.where(shares > 0, excess, -np.inf).argmax())
    amount = min(amount, float(moved[source]))
    moved[source] -= amount
    moved[int(excess.argmin())] += amount
    return moved
