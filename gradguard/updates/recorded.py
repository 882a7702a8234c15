"""A recording read back, checked: the folder that :mod:`gradguard.updates.recording` writes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from gradguard.finite import is_finite
from gradguard.updates.recording_layout import (
    FORMAT,
    INDEX,
    LABELS,
    MODEL,
    RecordingError,
    Shapes,
    check_client,
    check_count,
    check_fits,
    labels_file,
    message_file,
    reference_file,
    round_folder,
    round_number,
)

MOST_JSON = 2**28
"""Bytes of an index; one entry takes about a hundred."""


@dataclass(frozen=True)
class RecordedMessage:
    """What one client sent in one round.

    Args:
        round: Its number.
        client: The client's name.
        path: Where the update lies.
        model_path: Where the model lies that the client got.
        bytes_sent: Length of the message as it came; ``None`` if it was not recorded.
        num_examples: What the client said beside it, ``None`` if that was not recorded.
        counts: The truth, how many examples of each class; ``None`` if the client wrote none.
    """

    round: int
    client: str
    path: Path
    model_path: Path
    bytes_sent: int | None = None
    num_examples: int | None = None
    counts: tuple[int, ...] | None = None

    def update(self) -> dict[str, Tensor]:
        """The change *after minus before* by name, read now.

        Raises:
            RecordingError: The file is gone or damaged, or a value is not finite.
        """
        return load_tensors(self.path)

    def model(self) -> dict[str, Tensor]:
        """The model that the client got, read now; raises as :meth:`update` does."""
        return load_tensors(self.model_path)


@dataclass(frozen=True)
class RecordedRound:
    """One round: the model that was sent, and what came back.

    Args:
        refused: Clients whose message could not be recorded, with the reason.
    """

    number: int
    model_path: Path
    messages: tuple[RecordedMessage, ...]
    refused: tuple[tuple[str, str], ...] = ()

    def model(self) -> dict[str, Tensor]:
        """The model that the server sent, read now; raises as :meth:`RecordedMessage.update`."""
        return load_tensors(self.model_path)


@dataclass(frozen=True)
class Recording:
    """Everything that a server saw.

    Args:
        rounds: By number.
        stray_labels: How many truths belong to no message.
    """

    folder: Path
    rounds: tuple[RecordedRound, ...]
    stray_labels: int = 0

    @property
    def messages(self) -> tuple[RecordedMessage, ...]:
        """Of all rounds, in order."""
        return tuple(message for one in self.rounds for message in one.messages)


def read_recording(folder: Path | str) -> Recording:
    """The recording in a folder; tensors stay in their files until they are asked for.

    Guarantees:

    - every message is there, and has names and shapes of its round's model;
    - no file outside of the folder's own names is opened, whatever the index says;
    - values are checked to be finite when they are read.

    Raises:
        RecordingError: There is no such folder, it is no recording, or it is damaged.
    """
    folder = Path(folder).resolve()
    try:
        if not folder.is_dir():
            raise RecordingError(f"{folder}: no such folder; give one that a Recorder wrote")
        if not (folder / INDEX).is_file():
            raise RecordingError(
                f"{folder}: not a recording, for it has no {INDEX}; give a folder that "
                "gradguard.updates.recording.Recorder wrote"
            )
        read_json(folder / INDEX)
        numbers = sorted(
            n for n in (round_number(p.name) for p in folder.iterdir()) if n is not None
        )
        # A server that was killed before a round's first index saw nothing in it.
        begun = [n for n in numbers if (folder / round_folder(n) / INDEX).is_file()]
        rounds = tuple(_round(folder, number) for number in begun)
        found = sum(1 for _ in folder.glob(f"{LABELS}/round-*/*.json"))
    except OSError as error:
        raise RecordingError(f"{folder}: cannot be read ({error.strerror})") from error
    used = sum(m.counts is not None for one in rounds for m in one.messages)
    return Recording(folder, rounds, stray_labels=found - used)


def _round(folder: Path, number: int) -> RecordedRound:
    there, index = folder / round_folder(number), read_round(folder, number)
    model = tensor_shapes(there / MODEL)
    messages = tuple(_message(folder, number, entry, model) for entry in index["messages"])
    refused = tuple((str(entry["client"]), str(entry["why"])) for entry in index["refused"])
    return RecordedRound(number, there / MODEL, messages, refused)


def _message(folder: Path, number: int, entry: dict[str, Any], model: Shapes) -> RecordedMessage:
    there, client = folder / round_folder(number), entry["client"]
    path, model_path = there / message_file(client), there / MODEL
    if entry["own_reference"]:
        model_path = there / reference_file(client)
        if tensor_shapes(model_path) != model:
            raise RecordingError(f"{model_path}: another model than the round's")
    check_fits(tensor_shapes(path), model, who=f"{path}: client {client!r}")
    labels = folder / LABELS / round_folder(number) / labels_file(client)
    return RecordedMessage(
        number,
        client,
        path,
        model_path,
        entry["bytes_sent"],
        entry["num_examples"],
        _counts(labels, number, client) if labels.is_file() else None,
    )


def _counts(path: Path, number: int, client: str) -> tuple[int, ...]:
    table = read_json(path)
    try:
        counts = table["counts"]
        for value in counts:
            check_count("a count", value)
        if (table["round"], table["client"]) != (number, client) or not sum(counts):
            raise RecordingError("of another round or client, or of no example")
    except (KeyError, TypeError, RecordingError) as error:
        raise RecordingError(
            f"{path}: not the labels of client {client!r} in round {number} ({error})"
        ) from error
    return tuple(counts)


def read_round(folder: Path, number: int) -> dict[str, Any]:
    """The index of a round, checked.

    Raises:
        RecordingError: It is damaged.
    """
    path = folder / round_folder(number) / INDEX
    table = read_json(path)
    try:
        if table["round"] != number:
            raise RecordingError(f"it is that of round {table['round']!r}")
        if type(table["messages"]) is not list or type(table["refused"]) is not list:
            raise RecordingError("messages and refused must be lists")
        for entry in table["messages"]:
            check_client(entry["client"])
            if type(entry["own_reference"]) is not bool:
                raise RecordingError("own_reference must be true or false")
            for name in ("bytes_sent", "num_examples"):
                if entry[name] is not None:
                    check_count(name, entry[name])
        clients = [entry["client"] for entry in table["messages"]]
        if len(set(clients)) < len(clients):
            raise RecordingError("a client is listed twice")
        for entry in table["refused"]:
            check_client(entry["client"])
            entry["why"]
    except (KeyError, TypeError, RecordingError) as error:
        raise RecordingError(f"{path}: a damaged index ({error})") from error
    return table


def read_json(path: Path) -> dict[str, Any]:
    """A table of this format's number.

    Raises:
        RecordingError: It is none, or of another number.
    """
    _check_plain_file(path)
    try:
        if path.stat().st_size > MOST_JSON:
            raise RecordingError(f"{path}: more than {MOST_JSON:,} bytes")
        table = json.loads(path.read_text(encoding="utf-8"))
    except RecordingError:
        raise
    except (OSError, ValueError, RecursionError) as error:  # a number of 5,000 digits too
        raise RecordingError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(table, dict) or "format" not in table:
        raise RecordingError(f"{path}: not a part of a recording, for it has no format number")
    if type(table["format"]) is not int or table["format"] != FORMAT:
        raise RecordingError(
            f"{path}: of format {table['format']!r}, expected {FORMAT}; read it with the gradguard "
            "that wrote it"
        )
    return table


def _check_plain_file(path: Path) -> None:
    """Raise for a link, which may lead out of the folder, and for a pipe, which would wait."""
    if path.resolve() != path or not path.is_file():  # of a resolved folder
        raise RecordingError(f"{path}: missing or damaged (no plain file of its own)")


def tensor_shapes(path: Path) -> Shapes:
    """Names and shapes in a file, without its values.

    Raises:
        RecordingError: It is gone or damaged.
    """
    _check_plain_file(path)
    try:
        with safe_open(path, "pt") as file:
            names = file.keys()  # it cannot be iterated itself
            return {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except (OSError, SafetensorError) as error:
        raise RecordingError(f"{path}: missing or damaged ({error})") from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors in a file, in no particular order.

    Raises:
        RecordingError: It is gone or damaged, or holds NaN or infinity.
    """
    _check_plain_file(path)
    try:
        with safe_open(path, "pt") as file:
            names = file.keys()
            found = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise RecordingError(f"{path}: missing or damaged ({error})") from error
    for name, tensor in found.items():
        if tensor.is_floating_point() and not is_finite(tensor):
            raise RecordingError(f"{path}: {name!r} holds NaN or infinity")
    return found
