"""What the server sees of one client over a study's rounds, as a black box.

An attack observes messages, and rehearses with a function from a batch to a message. Whatever
happens between a client's release and the server's view is therefore a wrapper around that
function, the same for victims and for rehearsals; no attack need know of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from gradguard.evaluation.cohort import OtherClients
from gradguard.evaluation.running.memo import MemoisedClient

Message = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Exchange:
    """A client that sends in several rounds, pooled by a server that knows which messages are its.

    The batch is all the data that the client has, and every message is computed from it. The
    model stays as it is over the rounds, which is a simplification: of a model that moves, each
    round shows the batch from another side. What the transform remembers (error feedback) goes on
    from round to round, and noise is fresh in each. The server takes the mean.

    In a cohort the server sees only the mean over the messages of several clients in each round.
    The others are new in every round, and send the message of their first.

    Guarantees:

    - one round with certain participation and no others is bitwise the client's own message;
    - the mean of equal messages is bitwise that message;
    - the client takes part in at least one round.

    Args:
        client: The defended client.
        rounds: How many rounds there are, at least 1.
        participation: The chance that the client takes part in a round, in (0, 1].
        cohort: How many clients' messages are summed in every round, at least 1.
        others: Where the others come from, in a cohort of more than one.
        seed: Decides in how many rounds each client takes part and with whom, and nothing else.
    """

    client: MemoisedClient
    rounds: int = 1
    participation: float = 1.0
    cohort: int = 1
    others: OtherClients | None = None
    seed: int = 0
    _rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_rng", np.random.default_rng(self.seed))

    def __call__(self, inputs: Tensor, labels: Tensor) -> Message:
        taken = self._taken()
        own = mean(self.client.rounds(inputs, labels, taken))
        if self.cohort == 1:
            return own
        # After all of its own: the next first message begins another client.
        rest = mean(self._of_others(taken))
        return {
            name: (part + (self.cohort - 1) * rest[name]) / self.cohort
            for name, part in own.items()
        }

    def _of_others(self, rounds: int) -> Iterator[Message]:
        if self.others is None:
            raise ValueError(f"a cohort of {self.cohort} needs others=..., got None")
        for _ in range(rounds):
            yield from self.others.messages(self.client.client, self.cohort - 1, self._rng)

    def _taken(self) -> int:
        if self.participation == 1:
            return self.rounds
        # In which of them does not matter while the model is fixed: only how many.
        return max(1, int(self._rng.binomial(self.rounds, self.participation)))


def mean(messages: Iterable[Message]) -> Message:
    """The mean of at least one message, parameter by parameter.

    Summed in float64: of a hundred float32 messages that is exact to their last bit, so that a
    defence which sends the same each time gains or loses nothing by rounding.

    >>> import torch
    >>> mean({"w": torch.tensor([value])} for value in (1.0, 2.0))
    {'w': tensor([1.5000])}
    """
    several = iter(messages)
    first = next(several)
    sums: Message = {}
    count = 1
    for message in several:
        sums = sums or {name: part.double() for name, part in first.items()}
        for name, part in message.items():
            sums[name] += part
        count += 1
    return {name: (part / count).to(first[name].dtype) for name, part in sums.items()} or first
