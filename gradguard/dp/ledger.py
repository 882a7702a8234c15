"""The ledger: every noised release of one data set, what it costs, and when to stop."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from opacus.accountants import PRVAccountant, RDPAccountant

from gradguard.dp.gaussian import gaussian_dp_epsilon
from gradguard.dp.history import FORMAT, History, appended, begins_with, history_from
from gradguard.dpsgd import check_accountant, check_number


class PrivacyBudgetExhausted(RuntimeError):
    """The next release would cost more than the budget; it was not made."""


class PrivacyLedger:
    """All releases computed from one data set, over all rounds, models and restarts.

    Keep one per data set and hand it to every ``make_private`` on that data: a new ledger for
    each round forgets what the earlier rounds have cost.

    Epsilon is add/remove of one record, an upper value, for Gaussian noise on a sum of clipped
    per-record gradients under Poisson sampling. With sample rate 1 throughout it is the closed
    form of Gaussian DP, else Opacus' accountant.

    Guarantees:

    - a release that would exceed ``max_epsilon`` raises before it is made, and is not booked;
    - the state is plain JSON, and a ledger that continues from it continues exactly;
    - a state is refused unless it begins with the releases that were booked here.

    Args:
        accountant: ``"prv"`` or ``"rdp"``.
        max_epsilon: The budget at ``delta``, or ``None`` for none.
        delta: Belongs to ``max_epsilon``.

    Raises:
        PrivacyBudgetExhausted: See above.
        ValueError: A sample rate is not in (0, 1], or a parameter is out of range.

    >>> ledger = PrivacyLedger()
    >>> ledger.charge(noise_multiplier=1.0, sample_rate=1.0)
    >>> ledger.releases, round(ledger.epsilon(1e-5), 6)
    (1, 4.377178)
    """

    def __init__(
        self,
        accountant: str = "prv",
        *,
        max_epsilon: float | None = None,
        delta: float | None = None,
    ) -> None:
        check_accountant(accountant)
        if (max_epsilon is None) != (delta is None):
            raise ValueError(
                "a budget is an epsilon at a delta: give max_epsilon and delta together, got "
                f"max_epsilon={max_epsilon!r}, delta={delta!r}"
            )
        if max_epsilon is not None:
            check_number("max_epsilon", max_epsilon)
        if delta is not None:
            check_delta(delta)
        self.accountant, self.max_epsilon, self.delta = accountant, max_epsilon, delta
        self.history: History = []
        # Without it every step would run the accountant: up to here the budget is known to last.
        self._affordable: tuple[float, History, int] = (0.0, [], 0)

    @property
    def releases(self) -> int:
        """How many releases were booked."""
        return sum(count for _, _, count in self.history)

    def charge(self, noise_multiplier: float, sample_rate: float) -> None:
        """Book one release, before it is made."""
        check_number("noise_multiplier", noise_multiplier, least=0)
        if not 0 < sample_rate <= 1:
            raise ValueError(
                f"a record is sampled with a probability in (0, 1], got {sample_rate!r}: the "
                "accounting would be wrong; do not accumulate batches, use BatchMemoryManager"
            )
        booked = appended(self.history, float(noise_multiplier), float(sample_rate), 1)
        self._check_budget(booked)
        self.history = booked

    def epsilon(self, delta: float) -> float:
        """Epsilon at ``delta`` of all releases so far; 0 before the first, add/remove."""
        check_delta(delta)
        return epsilon_of(self.history, delta, self.accountant)

    def _check_budget(self, booked: History) -> None:
        if self.max_epsilon is None or self.delta is None:
            return
        *before, (z, q, count) = booked
        budget, known, limit = self._affordable
        if budget == self.max_epsilon and known == [*before, (z, q, 0)] and count <= limit:
            return
        spent = self._cost([*before, (z, q, count)])
        if spent > self.max_epsilon:
            raise PrivacyBudgetExhausted(
                f"the next release would bring epsilon to {spent:.4g} at delta {self.delta:g}, "
                f"above the budget of {self.max_epsilon:g}; {self.releases} releases were made "
                "and this one was not. Stop training on this data"
            )
        # Doubling the step: logarithmically many runs of the accountant, none of them large.
        ahead = 1
        while ahead < count and self._cost([*before, (z, q, count + ahead)]) <= self.max_epsilon:
            ahead *= 2
        self._affordable = self.max_epsilon, [*before, (z, q, 0)], count + ahead // 2

    def _cost(self, history: History) -> float:
        assert self.delta is not None
        return epsilon_of(history, self.delta, self.accountant)

    def state_dict(self) -> dict[str, Any]:
        """Everything as numbers, text and lists, ready for JSON. It tells nothing of the data."""
        return {
            "format": FORMAT,
            "accountant": self.accountant,
            "max_epsilon": self.max_epsilon,
            "delta": self.delta,
            "history": [list(entry) for entry in self.history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``; the budget is that of this ledger.

        Raises:
            ValueError: Not a ledger's state, another accountant's, or one without the releases
                that were booked here.
        """
        history = history_from(state)
        if state["accountant"] != self.accountant:
            raise ValueError(
                f"the state is of accountant {state['accountant']!r}, this ledger's is "
                f"{self.accountant!r}; make the ledger with that accountant"
            )
        if not begins_with(history, self.history):
            raise ValueError(
                f"the state has {sum(n for _, _, n in history)} releases, which do not begin with "
                f"the {self.releases} booked here: loading it would forget some. Load it before "
                "the first release, and of several states the latest last"
            )
        stored = state.get("max_epsilon"), state.get("delta")
        if stored[0] is not None and self.max_epsilon is None:
            # A budget must not disappear because the new process forgot to ask for it.
            try:
                PrivacyLedger(self.accountant, max_epsilon=stored[0], delta=stored[1])
            except TypeError as error:
                raise ValueError(f"not the budget of a privacy ledger: {error}") from None
            self.max_epsilon, self.delta = stored
        self.history = history

    def to_json(self) -> str:
        """:meth:`state_dict` as text."""
        return json.dumps(self.state_dict(), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> PrivacyLedger:
        """The ledger that :meth:`to_json` wrote."""
        try:
            state = json.loads(text)
            ledger = cls(
                state["accountant"], max_epsilon=state["max_epsilon"], delta=state["delta"]
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"not the JSON of a privacy ledger: {error}") from None
        ledger.load_state_dict(state)
        return ledger

    def __repr__(self) -> str:
        return f"PrivacyLedger({self.accountant!r}, releases={self.releases})"


def epsilon_of(history: History, delta: float, accountant: str = "prv") -> float:
    """Epsilon (add/remove, an upper value) of a history of releases.

    >>> round(epsilon_of([(2.0, 1.0, 10)], 1e-5), 4), epsilon_of([], 1e-5)
    (7.5113, 0.0)
    """
    check_accountant(accountant)
    if not history:
        return 0.0  # Opacus' accountant fails on an empty history
    if any(z == 0 for z, _, _ in history):
        return math.inf
    if all(q == 1 for _, q, _ in history):
        return gaussian_dp_epsilon(math.sqrt(sum(n / z**2 for z, _, n in history)), delta)
    found = math.nan
    if accountant == "prv":
        found = _prv(history, delta)
    # The numerical accountant fails, or gives NaN or less than 0, for very small or large noise.
    return found if 0 <= found < math.inf else _rdp(history, delta)


def _prv(history: History, delta: float) -> float:
    ledger = PRVAccountant()
    ledger.history = list(history)
    try:
        # An overflow inside would go on as infinity, and perhaps come out as a number.
        with without_order_warning(), np.errstate(over="raise", invalid="raise"):
            return float(ledger.get_epsilon(delta))
    except (RuntimeError, ValueError, ArithmeticError, MemoryError):
        return math.nan


def _rdp(history: History, delta: float) -> float:
    ledger = RDPAccountant()
    ledger.history = list(history)
    with without_order_warning():
        found = float(ledger.get_epsilon(delta))
    return math.inf if math.isnan(found) else max(0.0, found)


@contextmanager
def without_order_warning() -> Iterator[None]:
    """Ignore that Renyi orders beyond those tried may be tighter: the bound is valid as it is."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimal order is the")
        yield


def check_delta(delta: float) -> None:
    """Raise unless ``delta`` is a probability strictly between 0 and 1."""
    if not 0 < delta < 1:
        raise ValueError(f"delta must be between 0 and 1, got {delta!r}")
