"""Numbers and text beside an update, made anew: nothing of the objects they came in leaves.

NVFlare serialises all attributes of an object, so that a float of a class of its own may carry a
whole model.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from torch import Tensor

from gradguard.dp import ClientDP
from gradguard.integrations.nvflare.dxo_arrays import kind_of

Plain = bool | int | float | str | None | list["Plain"] | dict["Plain", "Plain"]

LONGEST = 64
"""Bits of a whole number: Python's may have as many as a model."""

_SCALARS = frozenset(np.dtype(code).type for code in "?bBhHiIlLqQefd")


@dataclass(frozen=True)
class Allowance:
    """How much may leave beside the arrays of one result.

    Args:
        values: Numbers, texts and containers.
        characters: Of all texts together.
    """

    values: int
    characters: int


MOST = Allowance(1000, 100_000)
"""Beside an update."""

MOST_WITH_DP = Allowance(100, 1000)
"""Beside an update with client-level DP, which covers none of it."""


class PlainCopier:
    """Copies what is beside one result, and counts it.

    Guarantees:

    - a copy is made of ``bool``, ``int``, ``float``, ``str``, ``None``, ``list`` and ``dict`` of
      exactly these types, and shares no object with what it is of, but immutable ones.

    >>> copier = PlainCopier(MOST)
    >>> copier.copy({"loss": np.float32(0.5), "per class": (0.1, 0.9)}, "the meta data")
    {'loss': 0.5, 'per class': [0.1, 0.9]}
    >>> copier.copy({"control": np.zeros(3)}, "the meta data")
    Traceback (most recent call last):
        ...
    ValueError: the meta data of the result holds an array of 3 numbers, which no transform \
covers; expected numbers and text
    """

    def __init__(self, most: Allowance) -> None:
        self._most = most
        self._values = self._characters = 0

    def copy(self, value: object, what: str) -> Plain:
        """``value`` made anew.

        Raises:
            ValueError: Something in it is an array, bytes or another object, or there is too much.
        """
        if type(value) is dict:
            self._count(what)
            return {self._leaf(key, what): self.copy(held, what) for key, held in value.items()}
        if type(value) is list or type(value) is tuple:
            self._count(what)
            return [self.copy(held, what) for held in value]
        return self._leaf(value, what)

    def table(self, value: object, what: str) -> dict[str, Plain]:
        """A dictionary made anew, by names.

        Raises:
            ValueError: It is none, or see :meth:`copy`.
        """
        if not isinstance(value, dict):
            raise ValueError(f"{what} of the result holds {kind_of(value)}; expected a dict")
        copied = self.copy(dict(value), what)  # of any dict: nothing but its entries goes on
        assert isinstance(copied, dict)
        return {_name(key, what): held for key, held in copied.items()}

    def _leaf(self, value: object, what: str) -> bool | int | float | str | None:
        leaf = _exact(value)
        if leaf is None and value is not None:
            raise ValueError(
                f"{what} of the result holds {kind_of(value)}, which no transform covers; expected "
                "numbers and text"
            )
        self._count(what, len(leaf) if isinstance(leaf, str) else 0)
        return leaf

    def _count(self, what: str, characters: int = 0) -> None:
        self._values, self._characters = self._values + 1, self._characters + characters
        if self._values > self._most.values or self._characters > self._most.characters:
            raise ValueError(
                f"{what} of the result holds more than {self._most.values:,} values, or more than "
                f"{self._most.characters:,} characters, with what else is beside the update; no "
                "transform covers it"
            )


def copier_for(dp: ClientDP | None) -> PlainCopier:
    """That of one result of a site with ``dp``."""
    return PlainCopier(MOST if dp is None else MOST_WITH_DP)


def _name(key: object, what: str) -> str:
    if type(key) is not str:
        raise ValueError(f"{what} of the result holds the name {key!r}; expected text")
    return key


def _exact(value: object) -> bool | int | float | str | None:
    """A leaf as the type it is of; ``None`` if it is anything else."""
    if isinstance(value, Enum):
        value = value.value  # as DataKind's text; the member stays here
    if type(value) in _SCALARS or _is_one_number(value):
        assert isinstance(value, np.generic | np.ndarray | Tensor)
        value = value.item()
    if type(value) is int:
        return value if value.bit_length() <= LONGEST else None
    return value if type(value) is bool or type(value) is float or type(value) is str else None


def _is_one_number(value: object) -> bool:
    """As a metric that was not made a number."""
    if type(value) is np.ndarray:
        return value.size == 1 and value.dtype.kind in "biuf" and value.dtype.itemsize <= 8
    return type(value) is Tensor and value.numel() == 1 and not value.is_complex()
