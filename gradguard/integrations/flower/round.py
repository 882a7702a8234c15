"""One training message of a guarded client: what is known before the app runs, and its guard."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, Context, Message
from torch import Tensor, nn

from gradguard.dp import PrivacyLedger
from gradguard.dp.client_level import PrivateUpdateGuard
from gradguard.dp.history import begins_with
from gradguard.integrations.flower.arrays import tensors_of
from gradguard.integrations.flower.handshake import RECORD, ticket_from
from gradguard.integrations.flower.memory import Memory, ledger_in, recall, remember
from gradguard.integrations.flower.metrics import Privacy
from gradguard.integrations.flower.settings import settings_for
from gradguard.integrations.update_settings import UpdateSettings
from gradguard.updates.layout import Entries
from gradguard.updates.update_guard import UpdateGuard

SECURE_AGGREGATION = ("secaggplus_configs", "secaggplus_state")
"""Records that Flower's secure aggregation puts into messages and into ``Context.state``."""

log = logging.getLogger("gradguard")


@dataclass(frozen=True)
class Round:
    """What holds while the app trains.

    Args:
        received: The model that the server sent, under the names of the client's model.
        names: The names that travel, by those.
        nonce: Of the server's ticket; empty without one.
        memory: Of the rounds before.
        booked: The history of the client's own DP-SGD before this round.
    """

    settings: UpdateSettings
    received: Mapping[str, Tensor]
    names: Mapping[str, str]
    nonce: str
    memory: Memory | None
    booked: PrivacyLedger
    model: Callable[[], nn.Module] | None = field(repr=False)

    def named(self, arrays: Entries) -> dict[str, Tensor]:
        """What the app replies, under the names of the client's model."""
        own = {name: known for known, name in self.names.items()}
        return {own.get(name, name): tensor for name, tensor in arrays.items()}

    def as_sent(self, entries: Entries) -> dict[str, Tensor]:
        """Entries of the client's model, under the names that travel."""
        return {self.sent_name(name): tensor for name, tensor in entries.items()}

    def sent_name(self, own: str) -> str:
        """The name under which an entry of the client's model travels."""
        return self.names.get(own, own)

    @staticmethod
    def only_arrays(reply: Message) -> tuple[str, ArrayRecord]:
        """The model in the app's reply, with the name of its record."""
        if RECORD in reply.content:
            raise ValueError(
                "the reply has been defended already: keep one GuardMod, and put all its "
                "transforms into one defence"
            )
        return _only_arrays(reply, "the app's reply")

    def guard(self, context: Context, before: Entries) -> UpdateGuard:
        """The guard as it was after the round before.

        Args:
            before: The model received, in the dtypes of the client's own.

        Raises:
            ValueError: The memory is another defence's.
        """
        model = before if self.model is None else self.model()
        guard = self.settings.new_guard(model, who(context))
        if self.memory is not None:
            guard.load_arrays(self.memory.arrays, self.memory.text)
            if self.settings.simulation_seed is None:
                # Two messages that overlap begin from one Context, as does one after a crash.
                guard.draw_anew()
        if not guard.layout.parameters:
            raise ValueError(
                "none of the model's entries is a parameter, so that nothing would be defended; "
                "send floating-point weights, or say GuardMod(..., model=...)"
            )
        return guard

    def privacy(self, context: Context, guard: UpdateGuard) -> Privacy | None:
        """What has been spent when this round's message leaves, or ``None`` without DP.

        Raises:
            ValueError: The defence has DP-SGD, and the app did not train by it, or too long.
        """
        if isinstance(guard, PrivateUpdateGuard):
            ledger, delta = guard.ledger, guard.dp.delta
            return Privacy(guard.epsilon(), delta, ledger.releases, "client", ledger.accountant)
        dp = self.settings.defense.dp
        if dp is None:
            return None
        ledger = ledger_in(context) or PrivacyLedger(dp.accountant)
        _check_booked(self.booked, ledger, dp.noise_multiplier)
        epsilon, most = ledger.epsilon(dp.delta), self.settings.max_epsilon
        if most is not None and epsilon > most:
            raise ValueError(
                f"training has brought epsilon to {epsilon:.4g} at delta {dp.delta:g}, above "
                f"max_epsilon {most:g}; stop training on this client"
            )
        return Privacy(epsilon, dp.delta, ledger.releases, "example", ledger.accountant)

    def remember(self, context: Context, guard: UpdateGuard) -> None:
        """Keep the guard's memory for the next round."""
        arrays, text = guard.state_to_arrays()
        sent = 1 + (0 if self.memory is None else self.memory.sent)
        remember(context, Memory(arrays, text, self.settings.described(), sent))


def who(context: Context) -> str:
    """What tells simulated clients apart: the same in every run, where a partition is given."""
    return str(context.node_config.get("partition-id", context.node_id))


def begin(
    message: Message,
    context: Context,
    stated: Mapping[str, Any],
    model: Callable[[], nn.Module] | None,
) -> Round:
    """Everything about a training message that is to be known, or refused, before it is trained.

    Args:
        stated: What the app's code says, see :func:`settings_for`.
        model: Makes the client's model.

    Raises:
        ValueError: The settings, the message, or what the client remembers cannot be used.
    """
    settings = settings_for(context, stated)
    memory = recall(context)
    if memory is None and settings.is_off:
        log.warning("defence %r changes nothing: updates leave as they are", settings.defense.name)
    if memory is not None and memory.defense != settings.described():
        raise ValueError(
            "this client has sent messages of this run under other settings: "
            f"{memory.defense}, now {settings.described()}; keep one defence over a run"
        )
    if settings.defense.dp is not None and model is None:
        raise ValueError(
            "with DP-SGD it has to be known which entries are parameters, for nothing protects "
            "buffers: say GuardMod(..., model=...)"
        )
    if settings.wire and _securely_aggregated(message, context):
        raise ValueError(
            "encoded messages cannot be summed by secure aggregation: set wire to false"
        )
    nonce = _nonce(message, settings, memory)
    _, record = _only_arrays(message, "the server's message")
    received = tensors_of(record)
    names = _names_of(received, model)
    received = {own: received[name] for own, name in names.items()}
    return Round(settings, received, names, nonce, memory, _booked(context), model)


def _nonce(message: Message, settings: UpdateSettings, memory: Memory | None) -> str:
    record = message.content.config_records.get(RECORD)
    if record is None:
        if settings.wire:
            raise ValueError(
                "the server's message has no ticket, so its strategy cannot read encoded replies: "
                "wrap it in gradguard.integrations.flower.DecodingStrategy, or set wire to false"
            )
        return ""
    ticket, sent = ticket_from(record), 0 if memory is None else memory.sent
    del message.content[RECORD]  # the app need not know
    if ticket.accepted > sent:
        lost = (
            f"the server has {ticket.accepted} messages of this client and its memory knows of "
            f"{sent}: it was lost"
        )
        if settings.is_private:
            raise ValueError(
                f"{lost}, and with it what was spent of the privacy budget. Start a new run, with "
                "that in mind"
            )
        log.warning("%s, and with it what error feedback owed", lost)
    return ticket.nonce


def _only_arrays(message: Message, what: str) -> tuple[str, ArrayRecord]:
    records = list(message.content.array_records.items())
    if len(records) != 1:
        raise ValueError(
            f"{what} has {len(records)} ArrayRecords; expected one, the model. With secure "
            "aggregation put GuardMod after its mod"
        )
    return records[0]


def _names_of(
    received: Mapping[str, Tensor], model: Callable[[], nn.Module] | None
) -> dict[str, str]:
    """The names of the server's arrays, by those of the client's model."""
    if not all(name.isdecimal() for name in received):
        return {name: name for name in received}
    if model is None:
        raise ValueError(
            "the server's arrays have numbers for names, as for a NumPyClient, so that nothing "
            "says which of them are parameters; say GuardMod(..., model=...), with the entries of "
            "whose state_dict() in its order the client works"
        )
    # The order of a NumPyClient's list of arrays.
    ordered = sorted(received, key=int)
    own = model().state_dict()
    if [received[name].shape for name in ordered] != [tensor.shape for tensor in own.values()]:
        raise ValueError(
            f"the server sends {len(ordered)} arrays without names, and their shapes are not those "
            f"of the model's {len(own)} entries, in its order"
        )
    return dict(zip(own, ordered, strict=True))


def _securely_aggregated(message: Message, context: Context) -> bool:
    return any(key in message.content or key in context.state for key in SECURE_AGGREGATION)


def _booked(context: Context) -> PrivacyLedger:
    return ledger_in(context) or PrivacyLedger()


def _check_booked(before: PrivacyLedger, after: PrivacyLedger, promised: float) -> None:
    new = after.releases - before.releases
    if not begins_with(after.history, before.history):
        raise ValueError("the ledger lacks releases that were booked before this round")
    if new <= 0:
        raise ValueError(
            "the defence has DP-SGD, and no release was booked in this round; train by "
            "gradguard.integrations.flower.dp_sgd(context, defense, ...)"
        )
    for noise, _, count in reversed(after.history):
        if new > 0 and noise < promised * (1 - 1e-9):
            raise ValueError(
                f"the defence promises a noise multiplier of {promised:g} and training used "
                f"{noise:g}; give dp_sgd the same defence"
            )
        new -= count
