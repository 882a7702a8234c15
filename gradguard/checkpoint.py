"""What a guard does to the state of its transforms: copy it, grow it, check it against another.

The rule that makes this possible without asking the transforms: a list holds one entry per
parameter, everything else is shared.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor

from gradguard.core import Chain, GradTransform, State


def labelled(transform: GradTransform, state: State) -> State:
    """As of a chain of one: the states of many transforms look alike without their names.

    >>> from gradguard.transforms.sign import Sign
    >>> labelled(Sign(), {})
    {'0:Sign': {}}
    """
    return state if isinstance(transform, Chain) else {f"0:{type(transform).__name__}": state}


def unlabelled(transform: GradTransform, state: State) -> State:
    """The state that :func:`labelled` was given."""
    if isinstance(transform, Chain):
        return state
    held: State = state[f"0:{type(transform).__name__}"]
    return held


def cloned(state: State) -> State:
    """A copy that shares no tensor with the original."""
    return copy.deepcopy(state)


def extended(state: State, longer: State) -> State:
    """``state`` with the entries that ``longer`` has for further parameters; the rest is kept.

    Shared entries are kept as they are: a reset random stream would repeat its noise.

    >>> extended({"memory": [1.5], "rng": 7}, {"memory": [0.0, 0.0], "rng": 8})
    {'memory': [1.5, 0.0], 'rng': 7}
    """
    new = dict(state)
    for key, value in longer.items():
        if isinstance(value, dict):
            new[key] = extended(state[key], value)
        elif isinstance(value, list):
            new[key] = state[key] + value[len(state[key]) :]
    return new


def moved(state: Any, like: Any) -> Any:
    """A copy of ``state`` with every tensor on the device that ``like`` has it on."""
    if isinstance(like, Tensor):
        return state.detach().to(like.device).clone()
    if isinstance(like, dict):
        return {key: moved(state[key], value) for key, value in like.items()}
    if isinstance(like, list):
        return [moved(a, b) for a, b in zip(state, like, strict=True)]
    return copy.copy(state)


def check_structure(found: Any, expected: State) -> None:
    """Raise unless a checkpoint's state has the structure this guard expects.

    Raises:
        ValueError: Keys, lengths, shapes, dtypes or selected layers differ. Shows both.

    >>> check_structure({"0:Sign": {}}, {"0:Ternary": {}})
    Traceback (most recent call last):
        ...
    ValueError: this checkpoint belongs to another defence: expected {0:Ternary: {}}, got \
{0:Sign: {}}. Load it into a guard with the transforms it was saved from
    """
    wanted, got = describe(expected), describe(found)
    if wanted != got:
        what = "no guard state" if found is None else got
        raise ValueError(
            f"this checkpoint belongs to another defence: expected {wanted}, got {what}. "
            "Load it into a guard with the transforms it was saved from"
        )


def describe(state: Any) -> str:
    """The structure of a state in words: keys in order, shapes and dtypes; numbers by type.

    >>> import torch
    >>> describe({"memory": [torch.zeros(2, 3)], "selected": [True], "steps": 4})
    '{memory: [float32(2, 3)], selected: [True], steps: int}'
    """
    if isinstance(state, dict):
        return "{" + ", ".join(f"{key}: {describe(value)}" for key, value in state.items()) + "}"
    if isinstance(state, list):
        return "[" + ", ".join(map(describe, state)) + "]"
    if isinstance(state, Tensor):
        return f"{str(state.dtype).removeprefix('torch.')}{tuple(state.shape)}"
    # A bool says which parameters a pattern selected: another choice is another defence.
    return str(state) if isinstance(state, bool) else type(state).__name__
