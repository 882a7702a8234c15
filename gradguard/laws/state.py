"""A transform is a pure function of gradients and state, and its state is plain data."""

from __future__ import annotations

import copy
import io
import pickle
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from gradguard.checkpoint import check_structure, describe, extended
from gradguard.core import GradTransform
from gradguard.freshness import tensors_in
from gradguard.laws.checks import gradients, require, same
from gradguard.transforms.routing import NamedParameters


def purity(transform: GradTransform, params: NamedParameters) -> None:
    """Same in, same out; arguments are not written to, and no global generator moves."""
    grads, state = gradients(params), transform.init(params)
    before = copy.deepcopy((grads, state))
    versions = [t._version for t in tensors_in([grads, state])]
    with _elsewhere():
        world = _world()
        transform.init(params)
        first, second = transform.update(grads, state), transform.update(grads, state)
        still = same(_world(), world)
    require(same(first, second), transform, "purity", "two calls differ")
    # Versions too: a write that happens to change nothing here will change other gradients.
    untouched = versions == [t._version for t in tensors_in([grads, state])]
    untouched = untouched and same((grads, state), before)
    require(untouched, transform, "purity", "an argument was modified")
    require(still, transform, "purity", "a global generator moved")


@contextmanager
def _elsewhere() -> Iterator[None]:
    """Global generators where no transform that seeds them may already have put them; restored."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.seed()
        random.seed()
        np.random.seed()
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _world() -> list[Any]:
    return [torch.get_rng_state(), random.getstate(), pickle.dumps(np.random.get_state())]


def state_is_plain(transform: GradTransform, params: NamedParameters) -> None:
    """The state survives torch.save and a weights-only load; its lists have one entry each."""
    state = transform.init(params)
    for _ in range(2):
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        loaded = torch.load(buffer, weights_only=True)
        require(same(loaded, state), transform, "state_is_plain", "changed by save and load")
        lengths = set(_list_lengths(state))
        require(lengths <= {len(params)}, transform, "state_is_plain", f"lists of {lengths}")
        _, state = transform.update(gradients(params), state)


def state_structure_is_stable(transform: GradTransform, params: NamedParameters) -> None:
    """Steps change values in the state, never its keys, shapes or dtypes."""
    state = transform.init(params)
    before = describe(state)
    for _ in range(3):
        _, state = transform.update(gradients(params), state)
        require(describe(state) == before, transform, "state_structure_is_stable", state)


def state_grows(transform: GradTransform, params: NamedParameters) -> None:
    """A parameter added later gets its entry, and shared entries are kept."""
    longer = {**dict(zip(params.names, params, strict=True)), "added": torch.ones(2)}
    state, target = transform.init(params), transform.init(NamedParameters(longer))
    check_structure(extended(state, target), target)


def _list_lengths(state: Any) -> Iterator[int]:
    for value in state.values() if isinstance(state, dict) else ():
        if isinstance(value, list):
            yield len(value)
        yield from _list_lengths(value)
