"""The arguments of ``make_private``: what is refused, and what follows from them."""

from __future__ import annotations

from typing import Any

import torch
from opacus.accountants.utils import get_noise_multiplier
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from gradguard.core import GradTransform
from gradguard.dp import noise_stream
from gradguard.dp.ledger import PrivacyLedger, check_delta, epsilon_of, without_order_warning
from gradguard.dp.refusals import check_optimizer, check_parameters, check_transform
from gradguard.dpsgd import MODES, check_accountant, check_choice, check_norms, check_number
from gradguard.optimizer import GuardedOptimizer

MOST_EPSILON = 100.0


def check_arguments(
    model: nn.Module,
    optimizer: Optimizer,
    max_grad_norm: float | tuple[float, ...],
    after: GradTransform | None,
    mode: str,
    criterion: object,
) -> None:
    """Raise for whatever would void the guarantee, before anything is changed."""
    check_choice("mode", mode, MODES)
    check_norms(max_grad_norm)
    check_criterion(criterion)
    check_optimizer(optimizer)
    if after is not None:
        if isinstance(optimizer, GuardedOptimizer):
            raise ValueError(
                "the optimizer is guarded already; give its transform as after= instead, or no "
                "after="
            )
        check_transform(after)
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise TypeError(
            "DistributedDataParallel is not supported: with Opacus only one process adds noise, "
            "and the others would release theirs without"
        )
    check_parameters(model, optimizer)
    trainable = sum(p.requires_grad for group in optimizer.param_groups for p in group["params"])
    if isinstance(max_grad_norm, tuple):
        if mode == "ghost":
            raise ValueError("ghost clipping knows one norm for all parameters; use mode='hooks'")
        if len(max_grad_norm) != trainable:
            raise ValueError(
                f"expected one max_grad_norm for each of {trainable} trainable parameters, got "
                f"{len(max_grad_norm)}"
            )


def check_criterion(criterion: object) -> None:
    """Raise if the loss is known not to be a mean over examples."""
    # Opacus undoes the mean: of a sum, each gradient would grow with the number of examples.
    reduction = getattr(criterion, "reduction", "mean")
    if reduction != "mean":
        raise ValueError(
            f"the criterion has reduction={reduction!r}; use 'mean', which the clipping of single "
            "examples assumes"
        )


def check_delta_for(delta: float, records: int) -> None:
    """Raise if a mechanism that publishes a record now and then would have this delta."""
    check_delta(delta)
    if delta * records >= 1:
        raise ValueError(
            f"delta={delta:g} for {records} records: publishing one of them at random has such a "
            "delta, so no epsilon at it protects anyone; use one well below 1 over their number "
            "(the bare number is ledger.epsilon(delta))"
        )


def book_for(
    ledger: PrivacyLedger | None,
    accountant: str | None,
    max_epsilon: float | None,
    delta: float | None,
) -> PrivacyLedger:
    """The ledger given, or a new one."""
    if accountant is not None:
        check_accountant(accountant)
    if ledger is not None and not isinstance(ledger, PrivacyLedger):
        raise TypeError(f"ledger must be a PrivacyLedger or None, got {type(ledger).__name__}")
    if ledger is None:
        if max_epsilon is not None and delta is None:
            raise ValueError("max_epsilon is a budget at a delta; give target_delta as well")
        kept = None if max_epsilon is None else delta
        return PrivacyLedger(accountant or "prv", max_epsilon=max_epsilon, delta=kept)
    if max_epsilon is not None or accountant not in (None, ledger.accountant):
        raise ValueError(
            f"the ledger given has accountant {ledger.accountant!r} and budget "
            f"{ledger.max_epsilon!r}; set them where the ledger is made"
        )
    return ledger


def multiplier_for(
    noise_multiplier: float | None,
    target_epsilon: float | None,
    target_delta: float | None,
    epochs: int | None,
    sample_rate: float,
    loader: DataLoader[Any],
    book: PrivacyLedger,
) -> float:
    """The noise given, or the least that keeps ``epochs`` within the target."""
    if noise_multiplier is not None:
        if target_epsilon is not None or epochs is not None:
            raise ValueError("give noise_multiplier, or target_epsilon with epochs, but not both")
        check_number("noise_multiplier", noise_multiplier, least=0)
        return noise_multiplier
    if target_epsilon is None or target_delta is None or epochs is None:
        raise ValueError("give noise_multiplier, or all of target_epsilon, target_delta and epochs")
    check_number("target_epsilon", target_epsilon)
    if target_epsilon > MOST_EPSILON:
        raise ValueError(
            f"an epsilon of {target_epsilon:g} promises nothing, and the search for its noise may "
            f"not end; give a target of at most {MOST_EPSILON:g}, or noise_multiplier"
        )
    check_delta(target_delta)
    if type(epochs) is not int or epochs < 1:
        raise ValueError(f"epochs must be a whole number of at least 1, got {epochs!r}")
    if book.releases:
        raise ValueError(
            f"the ledger holds {book.releases} releases, on top of which target_epsilon would be "
            "exceeded; give noise_multiplier"
        )
    steps = epochs * len(loader)
    with without_order_warning():
        z = float(
            get_noise_multiplier(
                target_epsilon=target_epsilon,
                target_delta=target_delta,
                sample_rate=sample_rate,
                steps=steps,
                accountant=book.accountant,
            )
        )
    if not epsilon_of([(z, sample_rate, steps)], target_delta, book.accountant) <= target_epsilon:
        raise ValueError(
            f"no noise was found that gives epsilon {target_epsilon:g} at delta {target_delta:g}; "
            "give noise_multiplier"
        )
    return z


def new_streams(model: nn.Module) -> dict[str, torch.Generator]:
    """Secret randomness for noise and for sampling."""
    devices = {p.device for p in model.parameters() if p.requires_grad}
    if len(devices) != 1:
        raise ValueError(f"the model must be on one device, got {sorted(map(str, devices))}")
    cpu = torch.device("cpu")
    return {
        "noise": noise_stream.fresh_generator(devices.pop()),
        "sampling": noise_stream.fresh_generator(cpu),
    }
