"""A transform's state as arrays and JSON, for frameworks that keep nothing else between rounds.

There is no pickle in it, and it is read with the state that is expected at hand: what is read can
be of no other structure, shape or dtype.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradguard.core import State

FORMAT = 1
_TENSOR = "tensor"


def state_to_arrays(state: State) -> tuple[dict[str, np.ndarray], str]:
    """Every tensor of ``state`` as an array under its path, and all the rest as JSON.

    Numbers in half precision, which numpy lacks or others do not read, become their bits as
    integers.

    Guarantees:

    - :func:`state_from_arrays` gives the same state back, to the last bit.

    Raises:
        TypeError: The state holds something other than tensors, numbers, text and containers.

    >>> arrays, text = state_to_arrays({"residual": [torch.ones(2), None], "steps": 3})
    >>> arrays
    {'residual/0': array([1., 1.], dtype=float32)}
    >>> text
    '{"format": 1, "state": {"residual": [{"tensor": "residual/0"}, null], "steps": 3}}'
    """
    arrays: dict[str, np.ndarray] = {}
    plain = _plain(state, (), arrays)
    return arrays, json.dumps({"format": FORMAT, "state": plain}, allow_nan=False)


def state_from_arrays(arrays: Mapping[str, np.ndarray], text: str, *, like: State) -> State:
    """The state that :func:`state_to_arrays` wrote.

    Args:
        like: A state of the same transform and model, such as ``init`` gives: the structure,
            shapes and dtypes to expect, and the devices to use.

    Raises:
        ValueError: It is of another structure, was cut short or is not such a state.
    """
    try:
        table = json.loads(text)
        if table["format"] != FORMAT:
            raise ValueError(f"expected format {FORMAT}, got {table['format']!r}")
        return dict(_restored(table["state"], arrays, like, "state"))
    except (KeyError, TypeError, RecursionError, json.JSONDecodeError) as error:
        raise ValueError(
            f"not the state of a transform ({type(error).__name__}: {error}); begin anew without "
            "a state, which forgets residuals"
        ) from None


def _plain(value: Any, path: tuple[str, ...], arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, Tensor):
        name = "/".join(path)
        arrays[name] = _array(value)
        return {_TENSOR: name}
    if isinstance(value, dict):
        if not all(isinstance(key, str) and key != _TENSOR for key in value):
            raise TypeError(f"keys of a state must be text other than {_TENSOR!r}, got {value!r}")
        return {key: _plain(held, (*path, key), arrays) for key, held in value.items()}
    if isinstance(value, list):
        return [_plain(held, (*path, str(i)), arrays) for i, held in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"{'/'.join(path)} of the state is {type(value).__name__}; expected tensors, numbers, "
        "text, lists and dicts"
    )


def _array(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu().contiguous()
    if tensor.is_floating_point() and tensor.element_size() < 4:
        bits = torch.int16 if tensor.element_size() == 2 else torch.uint8
        tensor = tensor.view(bits)
    return np.array(tensor.numpy())  # a copy: the state goes on


def _restored(found: Any, arrays: Mapping[str, np.ndarray], like: Any, path: str) -> Any:
    if isinstance(like, Tensor):
        return _tensor(arrays[found[_TENSOR]], like, path)
    if isinstance(like, dict):
        if list(found) != list(like):
            raise ValueError(_differ(path, f"keys {list(like)}", f"keys {list(found)}"))
        return {
            key: _restored(found[key], arrays, held, f"{path}/{key}") for key, held in like.items()
        }
    if isinstance(like, list):
        if not isinstance(found, list) or len(found) != len(like):
            raise ValueError(_differ(path, f"{len(like)} entries", repr(found)[:80]))
        both = enumerate(zip(found, like, strict=True))
        return [_restored(f, arrays, held, f"{path}/{i}") for i, (f, held) in both]
    # A bool says which parameters a pattern selected: another choice is another defence.
    if type(found) is not type(like) or (isinstance(like, bool) and found != like):
        wanted = repr(like) if isinstance(like, bool) else type(like).__name__
        raise ValueError(_differ(path, wanted, repr(found)[:80]))
    return found


def _tensor(array: np.ndarray, like: Tensor, path: str) -> Tensor:
    expected = _array(like[:0] if like.dim() else like)  # for its dtype
    array = np.asarray(array)
    if array.dtype != expected.dtype or array.shape != tuple(like.shape):
        wanted = f"{expected.dtype} of shape {tuple(like.shape)}"
        raise ValueError(_differ(path, wanted, f"{array.dtype} of shape {array.shape}"))
    tensor = torch.from_numpy(np.array(array))
    return (tensor.view(like.dtype) if tensor.dtype != like.dtype else tensor).to(like.device)


def _differ(path: str, expected: str, found: str) -> str:
    return (
        f"{path}: expected {expected}, got {found}; the state belongs to another transform or "
        "model, or was changed on its way"
    )
