"""The curious server: a strategy around any other that writes down what it is sent."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from gradguard.integrations.flower.arrays import tensors_of
from gradguard.integrations.flower.reply import ReplyError, read_reply
from gradguard.integrations.flower.wrapper import Wrapper
from gradguard.updates.recording import Recorder

log = logging.getLogger("gradguard")


class Observer(Wrapper):
    """Any strategy of Flower's, with a record of what clients send to it: for audits and tests.

    **The folder reveals labels of the clients' data**, as far as their defence lets it. Put it
    outermost, ``Observer(DecodingStrategy(FedAvg()), folder)``: it then sees what comes in, bytes
    as they were sent, and not what a strategy around it has made of them.

    ``gradguard evaluate STUDY --observed FOLDER`` attacks what is in it. For the truth to score by,
    an audited client calls :func:`gradguard.updates.recording.record_labels` itself: labels never
    travel with its reply.

    Guarantees:

    - instructions, replies and their aggregate are what they are without it;
    - a message that cannot be read is noted with the reason, and costs no other.

    Args:
        strategy: The one that does the work.
        folder: New, or a recording to be continued.

    Raises:
        RecordingError: The folder holds something else, or cannot be written to; in the midst of
            a run too, for an audit with holes is none.
    """

    def __init__(self, strategy: Strategy, folder: Path | str) -> None:
        super().__init__(strategy)
        self.recorder = Recorder(folder)
        self._sent: dict[int, ArrayRecord] = {}
        self._of_all: ArrayRecord | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The instructions of ``strategy``; the models in them are recorded."""
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        self._sent = {}
        for message in messages:
            for record in message.content.array_records.values():
                self._sent[message.metadata.dst_node_id] = record
        self._of_all = next(iter(self._sent.values()), None)
        if self._of_all is not None:
            self.recorder.begin_round(server_round, tensors_of(self._of_all))
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """What ``strategy`` makes of the replies, after they were recorded."""
        replies = list(replies)
        for reply in replies:
            self._record(server_round, reply)
        return self.strategy.aggregate_train(server_round, replies)

    def __repr__(self) -> str:
        return f"Observer({self.strategy!r}, {str(self.recorder.folder)!r})"

    def _record(self, server_round: int, reply: Message) -> None:
        client = str(reply.metadata.src_node_id)
        sent = self._sent.get(reply.metadata.src_node_id)
        if sent is None:
            log.warning("node %s was not asked, or not twice: it is not recorded", client)
            return
        del self._sent[reply.metadata.src_node_id]  # a second answer was not asked for
        if reply.has_error():
            self.recorder.refuse(server_round, client, reply.error.reason or "an error")
            return
        reference = tensors_of(sent)
        try:
            found = read_reply(reply, reference)
        except ReplyError as error:
            self.recorder.refuse(server_round, client, str(error))
            return
        self.recorder.add(
            server_round,
            client,
            found.update,
            bytes_sent=found.bytes_sent,
            num_examples=_examples(reply),
            reference=None if sent is self._of_all else reference,
        )


def _examples(reply: Message) -> int | None:
    for metrics in reply.content.metric_records.values():
        number = metrics.get("num-examples")
        if isinstance(number, int) and number >= 0:
            return number
    return None
