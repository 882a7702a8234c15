"""Encoding what a guard has released, with what its state says of the message."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gradguard.wire.encoder import encode

if TYPE_CHECKING:
    from gradguard.optimizer import GuardedOptimizer


def encode_release(
    message: Mapping[str, Tensor], optimizer: GuardedOptimizer, *, portable: bool = False
) -> bytes:
    """The bytes of a message that a guard has released, in the fewest bytes.

    As :func:`gradguard.wire.encode`, which finds in the values alone all that it can. Two things
    it cannot find, and the guard's state tells: the seed from which :class:`KeepRandomK` drew its
    coordinates, which are then not sent, and the factors of :class:`LowRank`.

    Guarantees:

    - decodes to bitwise the message, with whatever guard and state;
    - what is taken from the state is of the last message alone, and no more than it says already:
      coordinates that are zero, or factors of a product.

    Args:
        message: What ``optimizer.release()`` returned, or a client with ``optimizer`` as its
            ``guard``.
        optimizer: That guard, before it transforms anything else.
        portable: As for :func:`gradguard.wire.encode`.

    >>> import torch
    >>> from gradguard import LowRank, guard, wire
    >>> layer = torch.nn.Linear(100, 100)
    >>> optimizer = guard(torch.optim.SGD(layer.parameters()), LowRank(2), model=layer)
    >>> layer(torch.randn(8, 100)).square().sum().backward()
    >>> message = optimizer.release()
    >>> len(wire.encode_release(message, optimizer)) < 0.1 * len(wire.encode(message))
    True
    """
    seeds = [int(seed) % 2**64 for seed in _found("mask_seed", optimizer.guard_state)]  # signed
    factors = _factors(optimizer)
    # Of several masks each covers the message and says more than is left of it: perhaps too much.
    tried = seeds if len(seeds) == 1 else [None, *seeds]
    return min(
        (encode(message, mask_seed=seed, factors=factors, portable=portable) for seed in tried),
        key=len,
    )


def _factors(optimizer: GuardedOptimizer) -> dict[str, tuple[Tensor, Tensor]]:
    """By name, for every parameter that a transform left as a product."""
    products: dict[str, tuple[Tensor, Tensor]] = {}
    for entries in _found("factors", optimizer.guard_state):
        for name, pair in zip(optimizer.names or (), entries, strict=True):
            if bool(pair["q"].any()):  # zeros where another transform has had the parameter
                products[name] = (pair["p"], pair["q"])
    return products


def _found(key: str, state: Any) -> Iterator[Any]:
    """All entries of this name in a state, however deep transforms hold each other."""
    if not isinstance(state, Mapping):
        return
    for name, entry in state.items():
        if name == key:
            yield entry
        else:
            yield from _found(key, entry)
