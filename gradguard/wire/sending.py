"""Encoding what a guard has released, with what its state says of the message."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gradguard.core import State
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

    The seed is used only where no coordinate that was drawn holds a zero: otherwise it would tell
    which ones were looked at and found to be zero, as of words that occur in no example. Indices
    are sent then.

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
    names = optimizer.names or ()
    return encode_stated(message, optimizer.guard_state, names=names, portable=portable)


def encode_stated(
    message: Mapping[str, Tensor], state: State, *, names: Sequence[str], portable: bool = False
) -> bytes:
    """As :func:`encode_release`, with the state after ``update`` in place of a guard.

    Args:
        message: What ``update`` returned, by name.
        state: What it returned as well.
        names: Of all parameters, in the state's order; empty if the state has none of them.
        portable: As for :func:`gradguard.wire.encode`.
    """
    seeds: list[int | None] = [int(seed) % 2**64 for seed in _found("mask_seed", state)]  # signed
    factors = _factors(state, names)
    # Of several masks at most one, the narrowest, is that of the message.
    return min(
        (
            encode(message, mask_seed=seed, factors=factors, portable=portable)
            for seed in seeds or [None]
        ),
        key=len,
    )


def _factors(state: State, names: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """By name, for every parameter that a transform left as a product."""
    products: dict[str, tuple[Tensor, Tensor]] = {}
    for entries in _found("factors", state) if names else ():
        for name, pair in zip(names, entries, strict=True):
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
