"""``update_``, where a transform has it, is ``update`` in the memory of its arguments."""

from __future__ import annotations

import copy
from typing import Any

from gradguard.aliasing import disjoint
from gradguard.core import Grads, GradTransform, State, update_in_place, works_in_place
from gradguard.freshness import tensors_in, versions
from gradguard.laws.checks import form, gradients, require, same
from gradguard.randomness import reseeded
from gradguard.transforms.routing import NamedParameters

_SCALES = (1.0, 0.5, 0.0, 1e-4, 3.0)


def in_place_agrees(transform: GradTransform, params: NamedParameters) -> None:
    """``update_`` gives bitwise what ``update`` gives, over several steps and in every layout.

    No two of the tensors that it returns share memory, it writes nothing when it refuses NaN, and
    whatever it does write is counted in the tensors' versions.
    """
    if not works_in_place(transform):
        return
    pure = reseeded(transform.init(params), 5)
    own = disjoint([*tensors_in(pure), *params])
    _require(own, transform, "the first state shares memory, with parameters or within itself")
    owned = copy.deepcopy(pure)
    for step, scale in enumerate(_SCALES):
        grads: Grads = [
            None if i % len(_SCALES) == step else g.mul_(scale)
            for i, g in enumerate(tensors_in(gradients(params)))
        ]
        _refuses_untouched(transform, params, owned)
        expected, pure = transform.update(copy.deepcopy(grads), pure)
        given, before = [*tensors_in([grads, owned])], copy.deepcopy([grads, owned])
        counts = versions(given)
        out, owned = update_in_place(transform, grads, owned)
        _require(same([out, owned], [expected, pure]), transform, f"another result, step {step}")
        forms = [[*map(form, tensors_in(tensors))] for tensors in (out, expected)]
        _require(forms[0] == forms[1], transform, f"another layout, step {step}")
        _require(disjoint([*tensors_in([out, owned])]), transform, "results share memory")
        for tensor, old, count in zip(given, tensors_in(before), counts, strict=True):
            counted = same(tensor, old) or tensor._version != count
            _require(counted, transform, "a write was not counted by increment_version")


def _refuses_untouched(transform: GradTransform, params: NamedParameters, state: State) -> None:
    filled = [i for i, p in enumerate(params) if p.numel()]
    for index in {*filled[:1], *filled[-1:]}:  # NaN in the last one: all before it wait for it
        grads, owned = gradients(params), copy.deepcopy(state)
        poisoned = grads[index]
        assert poisoned is not None
        poisoned[(-1,) * poisoned.ndim] = float("nan")
        given, before = list(grads), copy.deepcopy(grads)
        try:
            update_in_place(transform, grads, owned)
        except ArithmeticError:
            untouched = same([given, owned], [before, state])
            _require(untouched, transform, "NaN was refused after something was written")


def _require(holds: bool, transform: GradTransform, seen: Any) -> None:
    require(holds, transform, "in_place_agrees", seen)
