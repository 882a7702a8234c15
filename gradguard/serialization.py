"""Transforms as plain data, the way study files write them, and back.

A chain is a list of tables with one key each, the transform's name, and its fields below::

    transform = [{ ClipByGlobalNorm = { max_norm = 1.0 } }, { Quantize = { bits = 8 } }]

``ErrorFeedback`` and ``Only`` hold such a list, or a single table, as their field ``transform``.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any

from gradguard.core import Chain, GradTransform, Identity, chain
from gradguard.transforms.casting import Cast
from gradguard.transforms.clipping import ClipByGlobalNorm, ClipByValue
from gradguard.transforms.error_feedback import ErrorFeedback
from gradguard.transforms.low_rank import LowRank
from gradguard.transforms.momentum_correction import MomentumCorrection
from gradguard.transforms.noise import AddGaussian, AddLaplace
from gradguard.transforms.quantization import Quantize
from gradguard.transforms.routing import Only, Withhold
from gradguard.transforms.sign import Sign
from gradguard.transforms.sparsification import KeepRandomK, KeepTopK
from gradguard.transforms.ternary import Ternary
from gradguard.transforms.warm_up import WarmUp

Plain = dict[str, dict[str, Any]]

TRANSFORMS: dict[str, type[Any]] = {
    cls.__name__: cls
    for cls in (
        *(Identity, ClipByGlobalNorm, ClipByValue, KeepTopK, KeepRandomK, Quantize, Ternary, Sign),
        *(Cast, LowRank, ErrorFeedback, MomentumCorrection, WarmUp, AddGaussian, AddLaplace),
        *(Only, Withhold),
    )
}
"""Every transform a study file can name."""


def transform_to_plain(transform: GradTransform) -> Plain | list[Plain]:
    """A transform as dicts, lists, strings and numbers: a table, or a list of them for a chain.

    >>> from gradguard.transforms.sparsification import KeepTopK
    >>> transform_to_plain(ErrorFeedback(KeepTopK(0.01)))
    {'ErrorFeedback': {'transform': {'KeepTopK': {'ratio': 0.01, 'scope': 'global'}}}}
    """
    if isinstance(transform, Chain):
        return [_table(link) for link in transform.links]
    return _table(transform)


def _table(transform: GradTransform) -> Plain:
    name = type(transform).__name__
    if TRANSFORMS.get(name) is not type(transform):
        raise ValueError(
            f"{name} is not one of gradguard's transforms, so a file cannot name it; known are "
            f"{', '.join(TRANSFORMS)}"
        )
    values = {f.name: getattr(transform, f.name) for f in fields(TRANSFORMS[name])}
    return {
        name: {
            key: transform_to_plain(value) if isinstance(value, GradTransform) else value
            for key, value in values.items()
        }
    }


def transform_from_plain(plain: Any, *, where: str = "transform") -> GradTransform:
    """The transform that plain data describes; a list gives a chain.

    Args:
        plain: A table, a list of tables, or a bare name for a transform without fields.
        where: What the data is called in error messages.

    Raises:
        ValueError: An unknown name or field, named together with the nearest known one; a field
            that is missing or out of range.

    >>> transform_from_plain([{"KeepTopK": {"ratio": 0.001, "scope": "global"}}, "Sign"])
    chain(KeepTopK(ratio=0.001, scope='global'), Sign())
    >>> transform_from_plain({"KeepTopk": {"ratio": 0.1}})
    Traceback (most recent call last):
        ...
    ValueError: transform: unknown transform 'KeepTopk'; did you mean 'KeepTopK'?
    """
    if isinstance(plain, str):
        plain = {plain: {}}
    if isinstance(plain, Sequence):
        items = [transform_from_plain(p, where=f"{where}[{i}]") for i, p in enumerate(plain)]
        return chain(*items)
    if not isinstance(plain, Mapping) or len(plain) != 1:
        raise ValueError(
            f"{where}: expected a table with one transform's name, such as "
            f"{{ KeepTopK = {{ ratio = 0.01 }} }}, or a list of such tables; got {plain!r}"
        )
    (name, values), *_ = plain.items()
    if name not in TRANSFORMS:
        raise ValueError(f"{where}: unknown transform {name!r}; {nearest(name, TRANSFORMS)}")
    return _built(TRANSFORMS[name], values, where=f"{where}.{name}")


def _built(cls: type[Any], values: Any, *, where: str) -> GradTransform:
    known = [f.name for f in fields(cls)]
    if not isinstance(values, Mapping):
        raise ValueError(
            f"{where}: expected a table of fields ({', '.join(known) or 'none'}), got {values!r}"
        )
    for key in values:
        if key not in known:
            raise ValueError(f"{where}: unknown field {key!r}; {nearest(key, known)}")
    arguments = {
        key: transform_from_plain(value, where=f"{where}.{key}") if key == "transform" else value
        for key, value in values.items()
    }
    try:
        transform: GradTransform = cls(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None
    return transform


def nearest(name: object, known: Collection[str]) -> str:
    """What to do about an unknown name: the nearest known one, or all of them.

    >>> nearest("ratoi", ["ratio", "scope"]), nearest("x", ["ratio", "scope"])
    ("did you mean 'ratio'?", 'known are ratio, scope')
    """
    lowered = {key.lower(): key for key in known}
    close = difflib.get_close_matches(str(name).lower(), lowered, n=1)
    if close:
        return f"did you mean {lowered[close[0]]!r}?"
    return f"known are {', '.join(known)}" if known else "none is known here"
