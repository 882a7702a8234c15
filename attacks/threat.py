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
        update: The transmitted gradient, or the change of the model, by parameter name, in model
            order. A change is *before minus after*, so that it points where a gradient points. A
            coordinate that was withheld or dropped is zero.
        batch_size: Examples behind the update: those whose labels are counted. A client that
            takes several local steps takes them on these examples.
        num_classes: Classes of the task.
        local_steps: Local optimizer steps behind the update; 1 for a gradient.
        learning_rate: The client's learning rate, where the update is a change of the model;
            ``None`` where it is a gradient, or a sum of ``local_steps`` gradients.
    """

    update: dict[str, Tensor]
    batch_size: int
    num_classes: int
    local_steps: int = 1
    learning_rate: float | None = None

    @property
    def steps_and_rate(self) -> float:
        """What an update of plain SGD is divided by to give the mean gradient of a local step."""
        return self.local_steps * (1.0 if self.learning_rate is None else self.learning_rate)


@dataclass(frozen=True, eq=False)  # tensors and modules have no useful ==
class Knowledge:
    """What the attacker has besides the observation; ``None`` means that it has not.

    Args:
        model: The model before the round.
        auxiliary: Inputs and labels disjoint from every client's data.
        client: The client's own code as a black box: inputs and labels in, defended message out,
            with fresh randomness in each call. An adaptive attacker knows the defence, not its
            random draws. It must stay the same function, and the auxiliary data the same data:
            what attacks learn from them is kept for as long as this object lives.
        num_classes: Classes of the task.
        batch_size: What the server is told; learned attackers simulate batches of this size.
        composition: The generator of batch compositions if known (see
            :mod:`gradguard.attacks.composition`); ``None`` is a broad mixture.
        local_steps: Local optimizer steps behind each update, as the server is told.
        learning_rate: The client's learning rate, where updates are changes of the model.
        seed: Seed of the attacker's own draws. It decides nothing about the client.
    """

    model: nn.Module | None = None
    auxiliary: tuple[Tensor, Tensor] | None = None
    client: Client | None = None
    num_classes: int | None = None
    batch_size: int | None = None
    composition: str | None = None
    local_steps: int = 1
    learning_rate: float | None = None
    seed: int = 0

    def observe(self, message: dict[str, Tensor]) -> Observation:
        """A message as the server sees it, with what it is told about all of them."""
        assert self.num_classes is not None  # an attack that rehearses needs both
        assert self.batch_size is not None
        return Observation(
            message, self.batch_size, self.num_classes, self.local_steps, self.learning_rate
        )


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
