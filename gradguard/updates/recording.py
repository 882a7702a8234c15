"""What a server saw of federated averaging, written down as it came: for audits and tests.

**The folder reveals its clients' labels**: whoever reads it can attack what was sent, and with
labels recorded it holds the answers. Record where you audit, keep the folder as you would keep the
data, and delete it.

::

    index.json                            format, and the gradguard that began it
    round-0001/model.safetensors          the model that the server sent
    round-0001/client-7.safetensors       what client 7 sent back: after minus before
    round-0001/reference-9.safetensors    the model that client 9 got, where it got one of its own
    round-0001/index.json                 which messages there are, and what came beside them
    labels/round-0001/client-7.json       the truth, written by the audited client, for scoring

:func:`read_recording` reads it, and ``gradguard evaluate STUDY --observed FOLDER`` attacks what is
in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from gradguard.updates.layout import Entries
from gradguard.updates.recorded import load_tensors, read_json, read_round
from gradguard.updates.recorded import read_recording as read_recording
from gradguard.updates.recorded_labels import record_labels as record_labels
from gradguard.updates.recording_layout import (
    INDEX,
    LABELS,
    MODEL,
    MOST_NAME,
    PART,
    Shapes,
    check_client,
    check_count,
    check_fits,
    check_round,
    digest_of,
    message_file,
    reference_file,
    round_folder,
    shapes_of,
    stored,
    unwritable,
    version,
    write_json,
    write_tensors,
)
from gradguard.updates.recording_layout import RecordingError as RecordingError


@dataclass(frozen=True)
class _Round:
    """What the recorder remembers of a round: its model's digest, and the index so far."""

    shapes: Shapes
    digest: bytes
    messages: list[dict[str, Any]] = field(default_factory=list)
    refused: list[dict[str, Any]] = field(default_factory=list)


class Recorder:
    """Writes what a server sees to a folder, message by message.

    A folder that holds a recording already is continued; a round that is there already is
    continued too if the model sent is the same, as after a restart of the server.

    Guarantees:

    - after every call the folder is a recording that :func:`read_recording` takes, and a process
      that is killed loses at most the message that it was writing;
    - names of clients, which are strangers, never decide where a file lies;
    - a call that raises leaves the recording as it was;
    - no tensor given is kept or changed.

    Not guaranteed: anything after a power cut, or with two recorders at work on one folder.

    Args:
        folder: Made if it is not there; new, empty or a recording.

    Raises:
        RecordingError: The folder holds something else, or cannot be written to.

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     recorder = Recorder(folder)
    ...     recorder.begin_round(1, {"w": torch.zeros(2)})
    ...     recorder.add(1, "client 7", {"w": torch.tensor([0.5, 0.0])}, num_examples=8)
    ...     [message] = read_recording(folder).rounds[0].messages
    ...     message.client, message.num_examples, message.update()
    ('client 7', 8, {'w': tensor([0.5000, 0.0000])})
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder).resolve()
        self._rounds: dict[int, _Round] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Audited clients may have written their labels first, or a killed server nothing yet.
            found = {path.name for path in self.folder.iterdir() if path.suffix != PART}
            others = found - {LABELS}
            if INDEX in others:
                read_json(self.folder / INDEX)
            elif others:
                raise RecordingError(
                    f"{self.folder}: holds {sorted(others)[0]!r} and no recording; give "
                    "a new folder"
                )
            else:
                write_json(self.folder / INDEX, {"gradguard": version()})
        except OSError as error:
            raise unwritable(self.folder, error) from error

    def begin_round(self, number: int, reference: Entries) -> None:
        """Write the model that the server sends to its clients in this round.

        Args:
            number: From 0; rounds may come in any order.
            reference: The whole model by name, buffers included.

        Raises:
            RecordingError: The round is there already with another model, or an entry is not
                finite.
        """
        check_round(number)
        tensors, there = stored(reference, what="the model"), self.folder / round_folder(number)
        try:
            if (there / INDEX).exists():
                self._rounds[number] = self._continued(number, tensors)
                return
            there.mkdir(exist_ok=True)
            write_tensors(there / MODEL, tensors)
            begun = _Round(shapes_of(tensors), digest_of(tensors))
            self._write_index(number, begun)
        except OSError as error:
            raise unwritable(self.folder, error) from error
        self._rounds[number] = begun

    def add(
        self,
        number: int,
        client: str,
        update: Entries,
        *,
        bytes_sent: int | None = None,
        num_examples: int | None = None,
        reference: Entries | None = None,
    ) -> None:
        """Write one client's message, decoded: the change *after minus before* by name.

        Args:
            number: Of a round that was begun.
            client: Any text that names the client, the same in all rounds.
            update: As :func:`gradguard.protect` gives it, or what the server decodes; it may lack
                entries that are not sent.
            bytes_sent: Length of the message as it came.
            num_examples: What the client said beside it.
            reference: The model that this client got; kept where it is not that of the round.

        Raises:
            RecordingError: The round was not begun, the client has sent already, or the message
                does not fit the model or is not finite: see :meth:`refuse`.
        """
        begun = self._begun(number)
        check_client(client)
        for name, value in (("bytes_sent", bytes_sent), ("num_examples", num_examples)):
            if value is not None:
                check_count(name, value)
        if any(entry["client"] == client for entry in begun.messages):
            raise RecordingError(f"client {client!r} has a message in round {number} already")
        tensors = stored(update, what=f"the update of client {client!r}")
        own = None if reference is None else stored(reference, what="the reference")
        if own is not None and shapes_of(own) != begun.shapes:
            raise RecordingError(f"the reference of client {client!r} is no model of the round's")
        check_fits(shapes_of(tensors), begun.shapes, who=f"client {client!r}")
        if own is not None and digest_of(own) == begun.digest:
            own = None
        entry = {"client": client, "bytes_sent": bytes_sent, "num_examples": num_examples}
        self._write_message(
            number, client, entry | {"own_reference": own is not None}, tensors, own
        )

    def refuse(self, number: int, client: str, why: str) -> None:
        """Note that a client's message could not be read or recorded, so that it is counted.

        Raises:
            RecordingError: The round was not begun.
        """
        begun = self._begun(number)
        check_client(client)
        entry = {"client": client, "why": str(why)[:MOST_NAME]}
        changed = replace(begun, refused=[*begun.refused, entry])
        try:
            self._write_index(number, changed)
        except OSError as error:
            raise unwritable(self.folder, error) from error
        self._rounds[number] = changed

    def _write_message(
        self,
        number: int,
        client: str,
        entry: dict[str, Any],
        tensors: dict[str, Tensor],
        own: dict[str, Tensor] | None,
    ) -> None:
        begun, there = self._rounds[number], self.folder / round_folder(number)
        changed = replace(begun, messages=[*begun.messages, entry])
        try:
            if own is not None:
                write_tensors(there / reference_file(client), own)
            write_tensors(there / message_file(client), tensors)
            self._write_index(number, changed)  # last: what it names is there
        except OSError as error:
            raise unwritable(self.folder, error) from error
        self._rounds[number] = changed

    def _begun(self, number: int) -> _Round:
        if number not in self._rounds:
            raise RecordingError(f"round {number!r} was not begun; call begin_round first")
        return self._rounds[number]

    def _continued(self, number: int, tensors: dict[str, Tensor]) -> _Round:
        """The round as it was written, if the model is the same."""
        there = self.folder / round_folder(number)
        digest = digest_of(tensors)
        if digest_of(load_tensors(there / MODEL)) != digest:
            raise RecordingError(
                f"{self.folder}: round {number} is recorded already, with another model; give a "
                "new folder for another run"
            )
        index = read_round(self.folder, number)
        return _Round(shapes_of(tensors), digest, index["messages"], index["refused"])

    def _write_index(self, number: int, begun: _Round) -> None:
        table = {"round": number, "messages": begun.messages, "refused": begun.refused}
        write_json(self.folder / round_folder(number) / INDEX, table)
