"""Deploy DP-SGD in one call: model, optimizer and loader in, their private versions out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from opacus.grad_sample import AbstractGradSampleModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from gradguard.core import GradTransform, Identity
from gradguard.dp import noise_stream
from gradguard.dp.arguments import (
    book_for,
    check_arguments,
    check_delta_for,
    multiplier_for,
    new_streams,
)
from gradguard.dp.errors import LostAccountingError
from gradguard.dp.ghost_module import PerExampleLoss
from gradguard.dp.ghost_optimizer import PrivateGhostOptimizer
from gradguard.dp.ledger import PrivacyLedger
from gradguard.dp.noised_guard import noised_guard
from gradguard.dp.sampling import (
    PoissonLoader,
    expected_batch_size,
    poisson_loader,
    rate_of,
    records_of,
)
from gradguard.dp.wrapping import Private, wrapped
from gradguard.hook_warning import ignore_hook_warning
from gradguard.optimizer import GuardedOptimizer

Norm = float | tuple[float, ...] | list[float]


@dataclass(frozen=True, eq=False)
class PrivateTraining:
    """What :func:`make_private` returns; use all of it in place of what was given.

    Unpacks as ``model, optimizer, loader``.

    Args:
        model: Computes per-example gradients.
        optimizer: An Opacus ``DPOptimizer`` around the guard that runs the transform.
        loader: Samples by Poisson; batches vary in size and may be empty.
        criterion: The loss to use; in ghost mode the only one that clips.
        ledger: All releases of this data set.
        sample_rate: The chance of each example to be in a batch.
    """

    model: nn.Module
    optimizer: Private
    loader: PoissonLoader
    criterion: Callable[..., Any]
    ledger: PrivacyLedger
    sample_rate: float
    _streams: dict[str, torch.Generator] = field(repr=False)
    _simulated: list[int] = field(default_factory=list, repr=False)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.optimizer, self.loader))

    @property
    def guard(self) -> GuardedOptimizer:
        """The guard that transforms what Opacus has noised."""
        return cast(GuardedOptimizer, self.optimizer.original_optimizer)

    @property
    def releases(self) -> int:
        """How many noised gradients this training has made, resumed ones included."""
        return self.optimizer.releases

    @property
    def nonfinite_examples(self) -> int:
        """Examples whose gradient held NaN or infinity and became zeros. Exact: do not send it."""
        return self.optimizer.nonfinite_examples

    def epsilon(self, delta: float) -> float:
        """Epsilon at ``delta`` of everything in the ledger: one record added or removed.

        Raises:
            LostAccountingError: The ledger lacks releases, or the noise came from a known seed.
            ValueError: ``delta`` is not below one over the number of records.
        """
        check_delta_for(delta, records_of(self.loader))
        self.optimizer.check_accounting()
        if self._simulated:
            raise LostAccountingError(
                "the noise came from a fixed seed, so whoever knows the seed subtracts it: this "
                "run is a simulation and has no epsilon. training.ledger.epsilon(delta) is what "
                "the same run with secret noise would have"
            )
        return self.ledger.epsilon(delta)

    def release(self) -> dict[str, Tensor] | None:
        """The message of a client that sends gradients instead of stepping, by parameter name.

        Clips, books, adds noise and transforms; do not call ``optimizer.step()`` for the same
        batch. ``None`` after a physical batch of a larger one.
        """
        if not self.optimizer.pre_step():
            return None
        return cast(dict[str, Tensor], self.guard.release())

    def reseed(self, seed: int | None = None) -> None:
        """Start new random streams, from the operating system or, for simulation, from a seed.

        With a seed :meth:`epsilon` raises from now on: the noise is no secret.
        """
        for name, stream in self._streams.items():
            noise_stream.reseed(stream, seed, path=name)
        self.guard.reseed(seed)
        if seed is not None:
            self._simulated.append(seed)

    def reset(self, seed: int | None = None) -> None:
        """As :meth:`reseed`, and forget the transform's residuals."""
        self.guard.reset(seed)
        self.reseed(seed)

    def state_dict(self) -> dict[str, Any]:
        """Ledger, counters and random streams, ready for JSON.

        Save it with the ``state_dict()`` of model and optimizer, and keep it as secret as the
        data: who has the streams can subtract the noise. The ledger's own ``state_dict()`` is the
        part that may be shown. A run resumed between two epochs continues bitwise.
        """
        return {
            "ledger": self.ledger.state_dict(),
            "releases": self.releases,
            "nonfinite_examples": self.nonfinite_examples,
            "simulated": bool(self._simulated),
            "streams": {name: noise_stream.encode(s) for name, s in self._streams.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`, before the first step here.

        Resume a state once only: two runs from one state add the same noise to different data,
        and their difference has none. Where that may happen, call :meth:`reseed` after loading.

        Raises:
            ValueError: Not such a state, another accountant's, or it would forget releases.
        """
        try:
            streams = state["streams"]
            loaded = {n: noise_stream.decode(streams[n], s) for n, s in self._streams.items()}
            releases, nonfinite = _count(state["releases"]), _count(state["nonfinite_examples"])
            booked, simulated = state["ledger"], bool(state["simulated"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"not the state of a private training: {error}") from None
        if self.releases > releases:
            raise ValueError(
                f"{self.releases} releases were made here and the state knows {releases}; load "
                "it before the first step"
            )
        self.ledger.load_state_dict(booked)
        if releases > self.ledger.releases:
            raise ValueError(f"{releases} releases, but the ledger holds {self.ledger.releases}")
        for name, stream in self._streams.items():
            stream.set_state(loaded[name])
        self.optimizer.continue_from(releases)
        self.optimizer.nonfinite_examples = nonfinite
        if simulated:  # and never less: steps made here with a known seed stay known
            self._simulated.append(0)


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"{value!r} is not a count")
    return value


def make_private(
    model: nn.Module,
    optimizer: Optimizer,
    loader: DataLoader[Any],
    *,
    noise_multiplier: float | None = None,
    target_epsilon: float | None = None,
    target_delta: float | None = None,
    epochs: int | None = None,
    max_grad_norm: Norm,
    after: GradTransform | None = None,
    mode: str = "hooks",
    accountant: str | None = None,
    criterion: nn.Module | None = None,
    ledger: PrivacyLedger | None = None,
    max_epsilon: float | None = None,
) -> PrivateTraining:
    """Train with DP-SGD: clip each example, add noise, book it, and then run ``after``.

    Guarantees:

    - what leaves is (epsilon, delta)-DP under adding or removing one record of ``loader``'s data,
      with the ledger's epsilon, whatever ``after`` does: it sees noised gradients only;
    - noise and sampling coins come from the operating system, not from torch's global seed;
    - examples whose gradient is not finite count as zeros, so they tell nothing (hooks mode);
    - what would void the guarantee raises: see :mod:`gradguard.dp.refusals`. So does a step of
      the ``optimizer`` given, past the private one, and a release of its guard.

    *Not* covered: everything that leaves beside the gradients (losses, accuracies, numbers of
    examples, BatchNorm buffers, early stopping, how ``max_grad_norm`` was found), a person with
    several records, and the floating-point and generator attacks that Opacus' secure mode is for.
    Nor can it be seen here, and it voids the guarantee, when

    - batches do not come from ``training.loader``, or each goes through the model twice;
    - loss, model or collate function mix examples (contrastive losses, mixup, statistics of
      a batch in layers of your own, positions embedded once for all), or the loss is no mean;
    - in ghost mode a parameter is used outside its layer (penalties on weights added to the
      loss, functional use): what is noticed is a sum longer than the norms that were clipped;
    - with loader workers, a physical batch of ``BatchMemoryManager`` is skipped without a step;
    - ``optimizer.load_state_dict`` is given the momentum of a training without noise.

    Args:
        model: Hooked by Opacus in place; BatchNorm only frozen and in eval mode. May be a previous
            training's model.
        optimizer: New and plain, or a new :class:`GuardedOptimizer`.
        loader: A plain ``DataLoader``; its sampling is replaced by Poisson's. ``batch_size`` of
            the whole data set is a full-batch client, with sample rate 1.
        noise_multiplier: Noise on the sum over ``max_grad_norm``; or else
        target_epsilon, target_delta, epochs: from which it is computed, for a new ledger.
        max_grad_norm: A norm for the whole gradient, or one for each trainable parameter.
        after: Post-processing: top-k, quantization, error feedback of noised gradients, ...
        mode: ``"hooks"``, or ``"ghost"`` for less memory; then use ``training.criterion``.
        accountant: ``"prv"`` (the default) or ``"rdp"``.
        criterion: A loss module with mean reduction; cross-entropy if not given.
        ledger: That of this data set, if it has been trained on before.
        max_epsilon: The budget at ``target_delta``, for a new ledger.

    Raises:
        TypeError, ValueError: Something would void the guarantee; the message has the mend.

    Abadi et al. 2016, arXiv:1607.00133; Yousefpour et al., "Opacus: User-Friendly Differential
    Privacy Library in PyTorch", 2021, arXiv:2109.12298.

    >>> from torch.utils.data import TensorDataset
    >>> data = TensorDataset(torch.randn(64, 4), torch.randint(2, (64,)))
    >>> model = nn.Linear(4, 2)
    >>> training = make_private(
    ...     model,
    ...     torch.optim.SGD(model.parameters(), lr=0.1),
    ...     DataLoader(data, batch_size=64),
    ...     noise_multiplier=1.0,
    ...     max_grad_norm=1.0,
    ... )
    >>> for inputs, labels in training.loader:
    ...     training.optimizer.zero_grad()
    ...     training.criterion(training.model(inputs), labels).backward()
    ...     _ = training.optimizer.step()
    >>> training.releases, round(training.epsilon(1e-5), 6)
    (1, 4.377178)
    """
    norm: float | tuple[float, ...] = (
        tuple(max_grad_norm) if isinstance(max_grad_norm, list) else max_grad_norm
    )
    check_arguments(model, optimizer, norm, after, mode, criterion)
    book = book_for(ledger, accountant, max_epsilon, target_delta)
    streams = new_streams(model)
    private_loader = poisson_loader(loader, streams["sampling"])
    rate = rate_of(private_loader)
    if target_delta is not None:
        check_delta_for(target_delta, records_of(private_loader))
    z = multiplier_for(
        noise_multiplier, target_epsilon, target_delta, epochs, rate, private_loader, book
    )
    plain = model._module if isinstance(model, AbstractGradSampleModule) else model
    guarded = noised_guard(optimizer, Identity() if after is None else after, model=plain)
    loss = nn.CrossEntropyLoss() if criterion is None else criterion
    private_model, private = wrapped(
        model, norm, mode,
        optimizer=guarded,
        noise_multiplier=z,
        expected_batch_size=expected_batch_size(private_loader),
        generator=streams["noise"],
        ledger=book,
        sample_rate=rate,
    )  # fmt: skip
    if isinstance(private, PrivateGhostOptimizer):
        loss = PerExampleLoss(private_model, private, loss, "mean")
    private.prefetching = private_loader.num_workers > 0
    private_loader.sampler_of_batches.on_start = private.start_anew
    ignore_hook_warning()
    return PrivateTraining(private_model, private, private_loader, loss, book, rate, streams)
