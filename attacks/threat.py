"""The threat model in types: what a curious server sees, what else it knows, what it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

Client = Callable[[Tensor, Tensor], dict[str, Tensor]]
"""Inputs ``(batch, ...)`` and integer labels ``(batch,)`` in, the defended message out."""


@dataclass(frozen=True)
class Observation:
    """Exactly what the server is given for one release, and nothing else.

    Args:
        update: The transmitted gradient (or model update), by parameter name, in model order.
            A coordinate that was withheld or dropped is zero.
        batch_size: Examples behind the update, per local step.
        num_classes: Classes of the task.
        local_steps: Local optimizer steps behind the update; 1 for a gradient.
        learning_rate: The client's learning rate, where the update is a model difference.
    """

    update: dict[str, Tensor]
    batch_size: int
    num_classes: int
    local_steps: int = 1
    learning_rate: float | None = None


@dataclass(frozen=True, eq=False)  # tensors and modules have no useful ==
class Knowledge:
    """What the attacker has besides the observation; ``None`` means that it has not.

    Args:
        model: The model before the round.
        auxiliary: Inputs and labels disjoint from every client's data.
        client: The client's own code as a black box: inputs and labels in, defended message out,
            with fresh randomness in each call. An adaptive attacker knows the defence, not its
            random draws.
        num_classes: Classes of the task.
        batch_size: What the server is told; learned attackers simulate batches of this size.
        composition: The generator of batch compositions if known (see
            :mod:`gradguard.attacks.composition`); ``None`` is a broad mixture.
        seed: Seed of the attacker's own draws. It decides nothing about the client.
    """

    model: nn.Module | None = None
    auxiliary: tuple[Tensor, Tensor] | None = None
    client: Client | None = None
    num_classes: int | None = None
    batch_size: int | None = None
    composition: str | None = None
    seed: int = 0


@runtime_checkable
class FittedAttack(Protocol):
    """An attack that has learned all it can before the round."""

    def infer(self, observations: Sequence[Observation]) -> Tensor:
        """Label counts, int64 of shape ``(observations, classes)``; rows sum to the batch size."""
        ...


@runtime_checkable
class Attack(Protocol):
    """A frozen dataclass that names the fields of :class:`Knowledge` it uses."""

    @property
    def needs(self) -> frozenset[str]:
        """Names of the :class:`Knowledge` fields without which :meth:`fit` raises."""
        ...

    def fit(self, knowledge: Knowledge) -> FittedAttack:
        """Prepare once for a model and a defence."""
        ...


class NotApplicableError(ValueError):
    """The attack cannot be mounted on this model or message, whatever the attacker knows.

    An evaluator reports the reason in place of a score; it must not count as a low score.
    """


def require(knowledge: Knowledge, attack: Attack) -> None:
    """Raise ``ValueError`` naming every field that ``attack`` needs and ``knowledge`` lacks."""
    missing = sorted(f for f in attack.needs if getattr(knowledge, f) is None)
    if missing:
        raise ValueError(
            f"{type(attack).__name__} needs Knowledge({', '.join(f'{f}=...' for f in missing)}); "
            "give it, or choose an attack that does without"
        )
