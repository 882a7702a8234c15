"""The laws that every transform obeys, as one check that can be run on anybody's transform."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import gradguard
from gradguard.core import GradTransform
from gradguard.laws.checks import LawBrokenError as LawBrokenError
from gradguard.laws.checks import require
from gradguard.laws.form import (
    dropped_coordinates_have_no_sign,
    finite_in_finite_out,
    non_finite_is_refused,
    presence,
    shape_dtype_device_layout,
)
from gradguard.laws.in_place import in_place_agrees
from gradguard.laws.randomness import randomness_is_fresh
from gradguard.laws.state import purity, state_grows, state_is_plain, state_structure_is_stable
from gradguard.laws.wire import wire_is_lossless
from gradguard.serialization import TRANSFORMS, transform_from_plain, transform_to_plain
from gradguard.transforms.routing import NamedParameters

Law = Callable[[GradTransform, NamedParameters], None]


def check_transform(transform: GradTransform, *, named: Mapping[str, Tensor] | None = None) -> None:
    """Run every law on a transform; silence means that all hold.

    Args:
        transform: An instance, such as ``MyTransform(strength=0.5)``.
        named: Parameters by name, whose values serve as gradients. By default a small set with
            every shape, dtype and layout that real models produce; see
            :func:`example_parameters`.

    Raises:
        LawBrokenError: A law does not hold.

    >>> from gradguard.transforms.sign import Sign
    >>> check_transform(Sign())
    """
    params = NamedParameters(dict(example_parameters() if named is None else named))
    for law in LAWS:
        law(transform, params)


def example_parameters() -> dict[str, Tensor]:
    """Parameters that a transform must cope with: channels-last, 0-d, empty, half, strided, zero.

    >>> ", ".join(example_parameters())
    'body.weight, body.bias, head.weight, head.bias, scale, empty, half, double, zero'
    """
    rng = torch.Generator().manual_seed(7)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=rng).to(dtype)

    return {
        "body.weight": normal(4, 3, 3, 3).to(memory_format=torch.channels_last),
        "body.bias": normal(4),
        "head.weight": normal(4, 5).t(),
        "head.bias": normal(5),
        "scale": normal(),
        "empty": normal(0, 3),
        "half": normal(6, dtype=torch.float16),
        "double": normal(3, dtype=torch.float64),
        "zero": torch.zeros(7),
    }


def values_back_from_text(transform: GradTransform, params: NamedParameters) -> None:
    """repr evaluates to an equal transform; so do pickle, deepcopy and the plain form."""
    names = {**vars(gradguard), type(transform).__name__: type(transform), "inf": float("inf")}
    try:
        copies: list[Any] = [eval(repr(transform), names), copy.deepcopy(transform)]
        copies.append(pickle.loads(pickle.dumps(transform)))
    except Exception as error:  # whatever a repr or pickle may raise breaks the law
        require(False, transform, "values_back_from_text", repr(error))
        return
    if type(transform).__name__ in TRANSFORMS:
        copies.append(transform_from_plain(transform_to_plain(transform)))
    for other in copies:
        require(other == transform, transform, "values_back_from_text", other)


LAWS: tuple[Law, ...] = (
    presence,
    shape_dtype_device_layout,
    purity,
    state_is_plain,
    state_structure_is_stable,
    state_grows,
    finite_in_finite_out,
    dropped_coordinates_have_no_sign,
    non_finite_is_refused,
    randomness_is_fresh,
    values_back_from_text,
    in_place_agrees,
    wire_is_lossless,
)
