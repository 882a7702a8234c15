"""Flower's real messages between a mod and a strategy, without an engine in between."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp.typing import ClientAppCallable
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy
from flwr.supercore.task_identity import TaskIdentity
from torch import Tensor, nn

from gradguard.integrations.flower import DecodingStrategy, GuardMod
from gradguard.integrations.flower.arrays import record_of

Train = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]
"""What an app makes of the model received."""


@contextmanager
def in_a_run() -> Iterator[None]:
    """Messages can be made only inside a run."""
    before = dict(vars(TaskIdentity))
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 99, 1
    try:
        yield
    finally:
        for name in ("_run_id", "_node_id", "_task_id"):
            if name in before:
                setattr(TaskIdentity, name, before[name])


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3))


def moved(received: dict[str, Tensor], seed: int = 0, scale: float = 0.1) -> dict[str, Tensor]:
    """A model that training has changed."""
    rng = torch.Generator().manual_seed(seed)
    return {
        name: t + scale * torch.randn(t.shape, generator=rng) if t.is_floating_point() else t + 1
        for name, t in received.items()
    }


def context(node: int = 1, *, run: Any = None, own: Any = None) -> Context:
    return Context(
        run_id=1,
        node_id=node,
        node_config=own or {},
        state=RecordDict(),
        run_config=run or {},
    )


def app(train: Train, *, examples: float = 8, **metrics: Any) -> ClientAppCallable:
    """A ClientApp's train function around ``train``."""

    def respond(message: Message, _: Context) -> Message:
        (record,) = message.content.array_records.values()
        received = cast(dict[str, Tensor], dict(record.to_torch_state_dict()))
        content = RecordDict(
            {
                "arrays": record_of(train(received)),
                "metrics": MetricRecord({"num-examples": examples, **metrics}),
            }
        )
        return Message(content, reply_to=message)

    return respond


class Nodes:
    """A grid of clients in this process."""

    def __init__(self, count: int) -> None:
        self.ids = list(range(1, count + 1))

    def get_node_ids(self) -> list[int]:
        return self.ids


class Federation:
    """Clients, their contexts and a server, round by round."""

    def __init__(
        self,
        strategy: Strategy | None = None,
        *,
        clients: int = 2,
        initial: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.strategy = DecodingStrategy(FedAvg()) if strategy is None else strategy
        self.grid = cast(Grid, Nodes(clients))
        self.contexts = {node: context(node) for node in range(1, clients + 1)}
        start = model().state_dict() if initial is None else initial
        self.arrays = record_of(start)
        self.round = 0
        self.replies: list[Message] = []

    def play(
        self, answer: Callable[[int], ClientAppCallable]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """One round; ``answer`` says what a node does with a message."""
        self.round += 1
        random.seed(self.round)  # strategies sample nodes, and sum their replies in that order
        asked = self.strategy.configure_train(self.round, self.arrays, ConfigRecord(), self.grid)
        self.replies = []
        for number, message in enumerate(asked):
            message.metadata.__dict__["_message_id"] = f"{self.round}.{number}"
            node = message.metadata.dst_node_id
            # As over a network: what is received shares nothing with what was sent.
            received = copy.deepcopy(message)
            self.replies.append(answer(node)(received, self.contexts[node]))
        found = self.strategy.aggregate_train(self.round, copy.deepcopy(self.replies))
        if found[0] is not None:
            self.arrays = found[0]
        return found

    def model(self) -> dict[str, Tensor]:
        return dict(self.arrays.to_torch_state_dict())


def guarded(mod: GuardMod, app: ClientAppCallable) -> ClientAppCallable:
    return lambda message, context: mod(message, context, app)


def instruction(entries: Mapping[str, Tensor], *, kind: str = "train") -> Message:
    """A message of a plain server."""
    content = RecordDict(
        {
            "arrays": record_of(entries),
            "config": ConfigRecord(),
        }
    )
    message = Message(content, dst_node_id=1, message_type=kind)
    message.metadata.__dict__["_message_id"] = "1"
    return message


def sent_model(reply: Message) -> dict[str, Tensor]:
    (record,) = reply.content.array_records.values()
    return dict(record.to_torch_state_dict())


def reasons(replies: Sequence[Message]) -> list[str]:
    return [str(reply.error.reason) for reply in replies if reply.has_error()]
