"""Differential privacy with the whole client as its unit: one clipped, noised update a round.

H. Brendan McMahan, Daniel Ramage, Kunal Talwar and Li Zhang, "Learning Differentially Private
Recurrent Language Models", 2017, arXiv:1710.06963, with the noise added by the client itself: the
guarantee then holds against the server too. Calibrated by Borja Balle and Yu-Xiang Wang,
"Improving the Gaussian Mechanism for Differential Privacy", 2018, arXiv:1805.06530.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass

import numpy as np
from torch import Tensor, nn

from gradguard.core import GradTransform, chain
from gradguard.dp.gaussian import gaussian_dp_epsilon, gaussian_mu
from gradguard.dp.ledger import PrivacyLedger, check_delta
from gradguard.dp.refusals import check_transform
from gradguard.dpsgd import check_number
from gradguard.randomness import fresh_rng
from gradguard.transforms.clipping import ClipByGlobalNorm
from gradguard.transforms.noise import AddGaussian
from gradguard.updates.layout import Entries
from gradguard.updates.protection import protect
from gradguard.updates.update_guard import UpdateGuard

_NOISE = "1:AddGaussian"  # its place in the state of the chain below


MOST_EPSILON = 500.0
"""Of a budget: beyond it exp(epsilon) leaves double precision, and nothing is protected."""


@dataclass(frozen=True)
class ClientDP:
    """Clip a client's model update, and add Gaussian noise before it leaves the client.

    The noise has standard deviation ``noise_multiplier * max_update_norm`` in every coordinate.
    Epsilon is for adding or removing all of one client's data, where a client without data sends
    an update of zero: it covers everything that the data hold together, such as the histogram of
    their labels. Replacing a client's data by others costs what twice ``1 / noise_multiplier``
    would.

    Args:
        noise_multiplier: Standard deviation of the noise over the clipping norm; above 0.
        max_update_norm: Longest update over all parameters, in units of the parameters; above 0.
        delta: At which epsilon is reported; well below one over the number of clients.

    >>> dp = ClientDP.for_budget(8.0, rounds=20, max_update_norm=1.0)
    >>> round(dp.noise_multiplier, 3), round(dp.epsilon(20), 3), round(dp.epsilon(1), 3)
    (2.684, 8.0, 1.437)
    """

    noise_multiplier: float
    max_update_norm: float
    _: KW_ONLY
    delta: float = 1e-5

    def __post_init__(self) -> None:
        check_number("noise_multiplier", self.noise_multiplier)
        check_number("max_update_norm", self.max_update_norm)
        check_delta(self.delta)

    @classmethod
    def for_budget(
        cls, epsilon: float, *, rounds: int, max_update_norm: float, delta: float = 1e-5
    ) -> ClientDP:
        """The least noise with which ``rounds`` updates of a client cost at most ``epsilon``."""
        check_number("epsilon", epsilon)
        if epsilon > MOST_EPSILON:
            raise ValueError(f"epsilon must be at most {MOST_EPSILON:g}, got {epsilon!r}")
        _check_rounds(rounds)
        check_delta(delta)
        # Upwards, so that rounding does not cost a hair more than the budget.
        noise = math.sqrt(rounds) / gaussian_mu(epsilon, delta) * (1 + 1e-9)
        return cls(noise, max_update_norm, delta=delta)

    def epsilon(self, rounds: int) -> float:
        """Epsilon at ``delta`` of a client that takes part in so many rounds."""
        _check_rounds(rounds)
        return gaussian_dp_epsilon(math.sqrt(rounds) / self.noise_multiplier, self.delta)

    def transform(self, after: GradTransform | None = None) -> GradTransform:
        """Clip, noise, and then ``after``, as one transform."""
        clip = ClipByGlobalNorm(self.max_update_norm)
        noise = AddGaussian(self.noise_multiplier * self.max_update_norm)
        return chain(clip, noise) if after is None else chain(clip, noise, after)


def _check_rounds(rounds: object) -> None:
    if not isinstance(rounds, int) or isinstance(rounds, bool) or rounds < 1:
        raise ValueError(f"rounds must be a whole number of at least 1, got {rounds!r}")


class PrivateUpdateGuard(UpdateGuard):
    """A client whose updates are differentially private, with every release in its ledger.

    Guarantees:

    - the noise of every update is drawn afresh from the operating system: not even two updates
      from one saved state share any, and no state tells of noise that was used;
    - a round that would exceed the ledger's budget raises, and nothing of it is returned;
    - every update that is returned was booked; one that raised was not;
    - buffers and frozen parameters send zeros;
    - what runs after the noise sees noised numbers alone, its memory included.

    Not guaranteed: anything about what leaves beside the update (losses, numbers of examples,
    whether a client answers at all: a model that is not finite raises), a clipping norm that was
    chosen from the data, floating-point rounding of the noise, people who hold several clients,
    and an older ledger that is loaded into a new guard: it does not know what was sent since.

    Args:
        model: The client's, or its entries, for what is a parameter and what a buffer.
        dp: Noise and clipping norm.
        after: Runs on the noised update, say ``ErrorFeedback(KeepTopK(0.05))``.
        ledger: Of this client, over all rounds and restarts; new if not given.

    Raises:
        PrivacyBudgetExhausted: By :meth:`protect`; see above.
        ValueError: ``after`` reads gradients from before the noise.

    >>> model = nn.Linear(3, 2)
    >>> guard = PrivateUpdateGuard(model, ClientDP(1.0, 0.5))
    >>> update = guard.protect(model.state_dict(), model.state_dict())
    >>> round(guard.epsilon(), 6), guard.ledger.releases
    (4.377178, 1)
    """

    def __init__(
        self,
        model: nn.Module | Entries,
        dp: ClientDP,
        *,
        after: GradTransform | None = None,
        ledger: PrivacyLedger | None = None,
    ) -> None:
        if after is not None:
            check_transform(after)
        super().__init__(dp.transform(after), model, buffers="withhold")
        self.dp, self.ledger = dp, PrivacyLedger() if ledger is None else ledger
        self._simulated = False

    def protect(self, before: Entries, after: Entries) -> dict[str, Tensor]:
        """The private change from ``before`` to ``after``, booked in the ledger."""
        state = self.state
        if not self._simulated:
            state = {**state, _NOISE: {"rng": fresh_rng()}}
        update, new = protect(
            before, after, self.transform, state, layout=self.layout, buffers=self.buffers
        )
        # Known noise hides nothing, and the ledger belongs to the data, which are real.
        noise = 0.0 if self._simulated else self.dp.noise_multiplier
        # Every round counts in full: the server knows who takes part.
        self.ledger.charge(noise, sample_rate=1.0)
        # From a twister that has drawn, what it drew can be computed backwards.
        self.state = new if self._simulated else {**new, _NOISE: {"rng": fresh_rng()}}
        return update

    def epsilon(self) -> float:
        """Epsilon at ``dp.delta`` of all updates so far: one client added or removed.

        Infinite once an update was made with a given seed: its noise is known.
        """
        return self.ledger.epsilon(self.dp.delta)

    def reset(self, seed: int | None = None) -> None:
        """Forget the memory of ``after``; never the ledger.

        Args:
            seed: For simulation only: its updates are not private, and are booked as that.
        """
        super().reset(seed)
        self._simulated = seed is not None

    def state_to_arrays(self) -> tuple[dict[str, np.ndarray], str]:
        """Everything that the next round needs, ledger included, as arrays and JSON."""
        arrays, text = super().state_to_arrays()
        held = {"client_dp": 1, "state": text, "ledger": self.ledger.to_json()}
        return arrays, json.dumps(held | {"simulated": self._simulated})

    def load_arrays(self, arrays: Mapping[str, np.ndarray], text: str) -> None:
        """Continue from what :meth:`state_to_arrays` gave; on an error nothing changes.

        Raises:
            ValueError: It is no such state, or its ledger lacks releases booked here.
        """
        try:
            held = json.loads(text)
            version, state, ledger = held["client_dp"], held["state"], json.loads(held["ledger"])
            simulated = held["simulated"]
            if version != 1 or type(simulated) is not bool:
                raise ValueError(f"expected version 1, got {version!r}")
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"not the state of a private client: {error}") from None
        before = self.state
        super().load_arrays(arrays, state)
        try:
            self.ledger.load_state_dict(ledger)
        except BaseException:
            self.state = before
            raise
        self._simulated = simulated

    def __repr__(self) -> str:
        return f"PrivateUpdateGuard({self.dp!r}, releases={self.ledger.releases})"
