"""Gradient transforms: pure ``(init, update)`` pairs, and their composition.

A transform never touches a model or an optimizer. It maps the gradients of one training step and
its own state to defended gradients and a new state. Everything that must survive between steps
(residuals, random streams) is in that state: a checkpoint is complete, and a test needs no tricks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from torch import Tensor

from gradguard.aliasing import separated, storages

Grads = list[Tensor | None]
"""One entry per parameter, in optimizer order; ``None`` where a parameter has no gradient."""

State = dict[str, Any]
"""Tensors, numbers and nested dicts. A list holds one entry per parameter, all else is shared."""


Reads = Literal["input", "raw_sum", "raw_per_sample"]
"""What a transform looks at: what ``update`` is given, or gradients from before DP-SGD's noise."""


@runtime_checkable
class GradTransform(Protocol):
    """A pure map on gradients: the same gradients and state in give the same out.

    Implementations are frozen dataclasses, so that a defence can be printed, compared, pickled
    and written to a study file. ``update`` must not modify its arguments.

    A transform that looks at gradients other than those it is given says so in a class attribute
    ``reads``, and is then refused after DP-SGD, whose guarantee it would void. Without the
    attribute it is taken to be ``"input"``.
    """

    def init(self, params: Sequence[Tensor]) -> State:
        """The state before the first step, for these parameters in optimizer order."""
        ...

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        """Defended gradients, aligned with ``grads``, and the state for the next step."""
        ...


@runtime_checkable
class InPlace(GradTransform, Protocol):
    """A transform that can also work in the memory of its arguments, which spares a copy.

    ``update_`` is what a guard calls where it is there: the guard owns ``p.grad`` and its state.
    Its contract, which ``check_transform`` tests:

    - it gives bitwise what ``update`` gives;
    - the caller gives both arguments up, and no two of their tensors share memory; nor do the
      gradients and the state that are returned, nor anything else that the caller can reach;
    - it raises for NaN and infinity before it has written anything;
    - a write that torch does not see, such as through numpy, is announced beforehand with
      ``torch.autograd.graph.increment_version``: by these counts a guard tells, after an error,
      whether its memory is still what it was.
    """

    def update_(self, grads: Grads, state: State) -> tuple[Grads, State]:
        """As ``update``, in the memory of ``grads`` and ``state`` where that serves."""
        ...


@dataclass(frozen=True)
class Identity:
    """Send the gradient as it is: the undefended baseline of every comparison.

    Guarantees:

    - the output is bitwise the input.

    >>> import torch
    >>> Identity().update([torch.tensor([1.0, -2.0]), None], {})
    ([tensor([ 1., -2.]), None], {})
    """

    reads: ClassVar[Reads] = "input"

    def init(self, params: Sequence[Tensor]) -> State:
        return {}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        return list(grads), state

    def update_(self, grads: Grads, state: State) -> tuple[Grads, State]:
        return grads, state


@dataclass(frozen=True)
class Chain:
    """Transforms applied left to right; built with :func:`chain`, which flattens."""

    links: tuple[GradTransform, ...]
    reads: ClassVar[Reads] = "input"

    def init(self, params: Sequence[Tensor]) -> State:
        # Position and type in the key: a checkpoint cannot be loaded into another chain unnoticed.
        return {f"{i}:{type(t).__name__}": t.init(params) for i, t in enumerate(self.links)}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        new: State = {}
        for (key, old), link in zip(state.items(), self.links, strict=True):
            grads, new[key] = link.update(grads, old)
        return grads, new

    def update_(self, grads: Grads, state: State) -> tuple[Grads, State]:
        new: State = {}
        for i, ((key, old), link) in enumerate(zip(state.items(), self.links, strict=True)):
            given = storages(grads)
            grads, new[key] = update_in_place(link, grads, old)
            if not works_in_place(link) and any(map(works_in_place, self.links[i + 1 :])):
                # What a pure link returns may still be its own, say a constant that it keeps.
                grads = [g if g is None or storages([g]) <= given else g.clone() for g in grads]
        return grads, new

    def __repr__(self) -> str:
        return f"chain({', '.join(map(repr, self.links))})"


def chain(*transforms: GradTransform) -> Chain:
    """Compose transforms left to right; nested chains flatten, so ``chain`` is associative.

    Order is meaning: clip before noise, noise before quantization.

    >>> chain(Identity(), chain(Identity(), Identity())) == chain(*[Identity()] * 3)
    True
    """
    flat: list[GradTransform] = []
    for transform in transforms:
        flat.extend(transform.links if isinstance(transform, Chain) else (transform,))
    return Chain(tuple(flat))


def works_in_place(transform: GradTransform) -> bool:
    """Whether ``update_`` is there and stands for the ``update`` that is there.

    A subclass that overrides ``update`` alone has inherited an ``update_`` that does something
    else; calling that would leave out what the subclass was written for.
    """
    return stands_for_update(transform, "update_")


def stands_for_update(transform: GradTransform, method: str) -> bool:
    """Whether ``method`` is of the class that ``update`` is of, or of one derived from that."""
    for cls in type(transform).__mro__:
        if method in vars(cls):
            return True
        if "update" in vars(cls):
            return False
    return False


def update_in_place(transform: GradTransform, grads: Grads, state: State) -> tuple[Grads, State]:
    """``update_`` where the transform has it, else ``update``; the arguments are given up.

    Returns:
        Gradients and a state of which no two tensors share memory, as ``update_`` of another
        transform may be given them.
    """
    if works_in_place(transform):
        assert isinstance(transform, InPlace)
        return transform.update_(grads, state)
    return separated(*transform.update(grads, state))


def walk(transform: GradTransform) -> Iterator[GradTransform]:
    """The transform and every transform held in its fields, outermost first.

    >>> [type(t).__name__ for t in walk(chain(Identity(), Identity()))]
    ['Chain', 'Identity', 'Identity']
    """
    yield transform
    if not is_dataclass(transform):
        return
    for field in fields(transform):
        value = getattr(transform, field.name)
        if isinstance(value, dict):
            value = list(value.values())
        for held in value if isinstance(value, tuple | list) else (value,):
            if isinstance(held, GradTransform):
                yield from walk(held)
