"""DP-SGD on a Flower client, with one ledger over all rounds of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from flwr.app import ConfigRecord, Context
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from gradguard.defense import Defense
from gradguard.dp import PrivacyLedger, PrivateTraining, make_private
from gradguard.integrations.flower.memory import keep_ledger, ledger_in

OPEN = "gradguard.open"


@contextmanager
def dp_sgd(
    context: Context,
    defense: Defense,
    model: nn.Module,
    optimizer: Optimizer,
    loader: DataLoader,  # type: ignore[type-arg]
    *,
    criterion: nn.Module | None = None,
    max_epsilon: float | None = None,
) -> Iterator[PrivateTraining]:
    """Train with the DP-SGD of ``defense``; every release is booked in ``Context.state``.

    Its transforms are not applied here: :class:`GuardMod` applies them to the change of the model,
    which is made of noised gradients only. Use it inside a function whose mods have a
    ``GuardMod`` with the same defence, which sends nothing unless this ledger has grown::

        with dp_sgd(context, defense, model, optimizer, loader) as (model, optimizer, loader):
            for inputs, labels in loader:
                ...

    Guarantees:

    - epsilon of a round includes all rounds of the run before it;
    - releases are booked even where the block raises.

    Not guaranteed: anything across runs, for Flower gives a run that is in no series an empty
    ``Context.state``: start it on the same data with what the last has cost in mind; see
    :func:`gradguard.dp.make_private` for the rest.

    Args:
        context: Of the client, as Flower hands it in.
        defense: With ``dp``.
        model: Fresh in every round, with the weights received.
        optimizer: Over its parameters.
        loader: Of the client's data.
        criterion: See :func:`gradguard.dp.make_private`.
        max_epsilon: Stop before this is exceeded, at the delta of ``defense.dp``.

    Raises:
        ValueError: ``defense`` has no ``dp``; or another block is open, whose releases this one
            would not count: train one after the other.
        PrivacyBudgetExhausted: The next step would cost too much.
    """
    if defense.dp is None:
        raise ValueError(
            f"defence {defense.name!r} has no dp; train without dp_sgd, or give it one"
        )
    dp, ledger = defense.dp, ledger_in(context)
    if OPEN in context.state:
        raise ValueError(
            "another dp_sgd block is open on this client, and each would forget the releases of "
            "the other: close one before the next"
        )
    delta = None if max_epsilon is None else dp.delta
    capped = PrivacyLedger(dp.accountant, max_epsilon=max_epsilon, delta=delta)
    if ledger is not None:
        capped.load_state_dict(ledger.state_dict())
    training = make_private(
        model,
        optimizer,
        loader,
        noise_multiplier=dp.noise_multiplier,
        max_grad_norm=dp.max_grad_norm,
        mode=dp.mode,
        ledger=capped,
        criterion=criterion,
    )
    context.state[OPEN] = ConfigRecord()
    try:
        yield training
    finally:
        keep_ledger(context, capped)
        del context.state[OPEN]
