"""Recorded messages held against the study that is to explain them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from gradguard.evaluation.decisions.matching import match
from gradguard.evaluation.errors import UnusableInputError, one_line
from gradguard.evaluation.exchange import Message
from gradguard.updates.recorded import RecordedMessage, Recording, load_tensors
from gradguard.updates.recording import RecordingError, read_recording

NO_LABELS = (
    "no message has its labels recorded, so nothing can be scored: let the audited clients call "
    "gradguard.updates.recording.record_labels. `gradguard scan` reads a single update without"
)


@dataclass(frozen=True, eq=False)
class Traffic:
    """The messages of a recording that can be scored.

    Args:
        sent: Those with their labels recorded.
        without_labels: How many have none.
    """

    recording: Recording
    sent: tuple[RecordedMessage, ...]
    without_labels: int

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Examples behind the messages, each size once."""
        return tuple(sorted({size_of(message) for message in self.sent}))

    @property
    def refused(self) -> int:
        """Messages that the server could not read."""
        return sum(len(one.refused) for one in self.recording.rounds)

    def by_client(self) -> dict[str, list[RecordedMessage]]:
        """Each client's messages, by round."""
        return _by_client(self.sent)

    def repeating(self) -> dict[str, list[RecordedMessage]]:
        """The messages of each client that sent several, all with the same labels."""
        return {c: own for c, own in self._several().items() if _agree(own)}

    def differing(self) -> tuple[str, ...]:
        """The clients whose labels are not the same in all of their rounds."""
        return tuple(client for client, own in self._several().items() if not _agree(own))

    def same_until(self, message: RecordedMessage) -> bool:
        """Whether its client held the same labels in all rounds up to this one.

        Of one whose earlier labels were not recorded, what most of the others did.
        """
        own = [m for m in self.sent if m.client == message.client and m.round <= message.round]
        if len(own) > 1:
            return _agree(own)
        return len(self.repeating()) > len(self.differing())

    def _several(self) -> dict[str, list[RecordedMessage]]:
        return {client: own for client, own in self.by_client().items() if len(own) > 1}

    def rounds_of(self, client: str) -> list[RecordedMessage]:
        """All messages of a client, with labels or without, by round."""
        return [m for m in self.recording.messages if m.client == client]


def size_of(message: RecordedMessage) -> int:
    """Examples behind a message, by its recorded labels."""
    assert message.counts is not None
    return sum(message.counts)


def counts_of(message: RecordedMessage) -> np.ndarray:
    """The truth, int64 of shape ``(classes,)``."""
    assert message.counts is not None
    return np.array(message.counts, dtype=np.int64)


def read_traffic(folder: Path) -> Traffic:
    """What of a recording can be scored.

    Raises:
        UnusableInputError: It is no recording, holds no message, or none has labels.
    """
    try:
        recording = read_recording(folder)
    except RecordingError as error:
        raise UnusableInputError(one_line(error)) from error
    if not recording.messages:
        raise UnusableInputError(f"{folder}: no message was recorded; there is nothing to attack")
    sent = tuple(m for m in recording.messages if m.counts is not None)
    if not sent:
        raise UnusableInputError(f"{folder}: {NO_LABELS}")
    return Traffic(recording, sent, without_labels=len(recording.messages) - len(sent))


def check_classes(traffic: Traffic, classes: int) -> None:
    """Raise unless the recorded labels are of the study's classes."""
    for message in traffic.sent:
        found = len(message.counts or ())
        if found != classes:
            raise UnusableInputError(
                f"the labels of client {message.client!r} in round {message.round} are counts of "
                f"{found} classes, and the study's data has {classes}; give the recorded task's "
                "study"
            )


def load_model(model: nn.Module, path: Path) -> None:
    """Put a recorded model's state into the study's.

    Raises:
        UnusableInputError: A name or shape is another, or one is missing.
    """
    try:
        state = load_tensors(path)
        matched = match(state, model)
        if matched.withheld:
            raise UnusableInputError(f"{matched.withheld[0]!r} is missing from it")
        model.load_state_dict({n.removeprefix(matched.prefix): part for n, part in state.items()})
    except (RecordingError, UnusableInputError, RuntimeError) as error:
        why = one_line(error).replace("in the message", "in the recording")
        raise UnusableInputError(
            f"{path}: the recorded model is not the study's: {why}; give the study whose model "
            "was trained"
        ) from error


def seen(message: RecordedMessage, model: nn.Module) -> tuple[Message, tuple[str, ...]]:
    """A message as attacks read it, *before minus after*, and the parameters that it lacks.

    Raises:
        UnusableInputError: It does not fit the model.
    """
    try:
        update: dict[str, Tensor] = message.update()
        matched = match(update, model)
    except (RecordingError, UnusableInputError) as error:
        raise UnusableInputError(f"{message.path}: {one_line(error)}") from error
    # Zeros stay +0.0: a sign on them would be one that no simulated message has.
    return {name: 0.0 - part for name, part in matched.update.items()}, matched.withheld


def _agree(messages: list[RecordedMessage]) -> bool:
    return len({message.counts for message in messages}) == 1


def _by_client(messages: tuple[RecordedMessage, ...]) -> dict[str, list[RecordedMessage]]:
    found: dict[str, list[RecordedMessage]] = defaultdict(list)
    for message in messages:
        found[message.client].append(message)
    return dict(found)
