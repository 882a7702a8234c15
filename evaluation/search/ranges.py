"""One parameter of a defence that is searched: between which values, or among which."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gradguard.evaluation.errors import UnusableInputError, unknown

KEYS = ("low", "high", "log", "step", "choices")

DIGITS = 3
"""Significant digits of a searched number, so that a short name can tell all of it."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """The values that one parameter may take.

    A searcher knows a value by its *place*: the number itself, or where it stands in a list of
    choices or steps. Whole numbers stay whole where ``low``, ``high`` and ``step`` are.

    Args:
        name: What the parameter is called in names and messages.
        low: The least value; with ``log``, above 0.
        high: The greatest value; above ``low``. With ``step``, the last step that does not pass it
            is the greatest.
        log: Equal ratios count as equally far, instead of equal differences.
        step: Only ``low``, ``low + step``, ...
        choices: These values, of any kind and in no order, instead of all the above.

    Raises:
        UnusableInputError: The values fit no such range.

    >>> Range(name="bits", low=2, high=8, step=2).value(3)
    8
    >>> Range(name="ratio", low=1e-4, high=0.1, log=True).value(0.012345)
    0.0123
    """

    name: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    step: float | None = None
    choices: tuple[Any, ...] | None = None

    def __post_init__(self) -> None:
        if self.choices is not None:
            self._check_choices()
            return
        _number(self.name, "low", self.low)
        _number(self.name, "high", self.high)
        if not self._low < self._high:
            raise self._error(f"low must be below high, got {self.low!r} and {self.high!r}")
        if not isinstance(self.log, bool):
            raise self._error(f"log must be true or false, got {self.log!r}")
        if self.log and not self._low > 0:
            raise self._error(f"with log, low must be above 0, got {self.low!r}")
        if self.step is not None:
            _number(self.name, "step", self.step)
            if self.log:
                raise self._error("has both log and step; keep one of them")
            if not 0 < self.step <= self._high - self._low:
                raise self._error(f"step must be above 0 and fit the range, got {self.step!r}")

    def _check_choices(self) -> None:
        if (self.low, self.high, self.log, self.step) != (None, None, False, None):
            raise self._error("has choices and a range; keep one of them")
        choices = self.choices
        if not isinstance(choices, tuple) or not choices:
            raise self._error(f"choices must be a list with at least one entry, got {choices!r}")
        if any(choice in choices[:i] for i, choice in enumerate(choices)):
            raise self._error(f"lists a choice twice: {list(choices)}")

    def _error(self, what: str) -> UnusableInputError:
        return UnusableInputError(f"[search] {self.name}: {what}")

    @classmethod
    def from_dict(cls, name: str, table: Mapping[str, Any]) -> Range:
        """The range that a study file writes as ``{ low = 1, high = 2 }`` or with ``choices``."""
        for key in table:
            if key not in KEYS:
                raise unknown(f"key of the range of [search] {name}", key, KEYS)
        if "choices" not in table and not {"low", "high"} <= set(table):
            raise UnusableInputError(
                f"[search] {name}: a range needs low and high, or choices; got {dict(table)!r}"
            )
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in table.items()
        }
        return cls(name=name, **values)

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value; not of choices."""
        return self._low, self._high

    @property
    def _low(self) -> float:
        assert self.low is not None  # by __post_init__
        return self.low

    @property
    def _high(self) -> float:
        assert self.high is not None  # by __post_init__
        return self.high

    @property
    def whole(self) -> bool:
        """Whether its values are whole numbers."""
        ends = (self.low, self.high, 1 if self.step is None else self.step)
        return all(isinstance(value, int) for value in ends)

    @property
    def count(self) -> int | None:
        """How many values there are, in a list of choices or steps; else ``None``."""
        if self.choices is not None:
            return len(self.choices)
        if self.step is None:
            return None
        # A last step that is missed by rounding alone is a step.
        return math.floor((self._high - self._low) / self.step + 1e-9) + 1

    def at(self, share: float) -> float:
        """The place at a share of the range, in [0, 1): 0 is the lowest or first."""
        if self.count is not None:
            return int(share * self.count)
        if self.whole:
            low, beyond = self._low, self._high + 1
            place = low * (beyond / low) ** share if self.log else low + share * (beyond - low)
            return min(int(place), int(self._high))
        if self.log:
            place = self._low * (self._high / self._low) ** share
        else:
            place = self._low + share * (self._high - self._low)
        return min(place, float(self._high))

    def value(self, place: float) -> Any:
        """The value at a place: never outside the range, and with few digits."""
        if self.choices is not None:
            return self.choices[int(place)]
        if self.step is not None:
            value = self._low + int(place) * self.step
            # Few enough digits for 0.1 + 2 * 0.1 to be 0.3.
            return int(value) if self.whole else float(f"{value:.12g}")
        if self.whole:
            return int(place)
        return min(max(float(f"{place:.{DIGITS}g}"), float(self._low)), float(self._high))


def _number(name: str, key: str, value: Any) -> None:
    # Written so that NaN and infinity fail; bool is a number to Python and a slip in a study file.
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if not (numeric and math.isfinite(value)):
        raise UnusableInputError(f"[search] {name}: {key} must be a finite number, got {value!r}")
