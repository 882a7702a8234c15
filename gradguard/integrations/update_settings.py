"""What decides what a client of federated averaging sends, whatever the framework around it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from torch import nn

from gradguard.defense import Defense
from gradguard.dp import ClientDP, PrivacyLedger
from gradguard.dp.client_level import PrivateUpdateGuard
from gradguard.dp.refusals import check_transform
from gradguard.dpsgd import check_number
from gradguard.updates.layout import Entries
from gradguard.updates.protection import Buffers
from gradguard.updates.update_guard import UpdateGuard


@dataclass(frozen=True)
class UpdateSettings:
    """A client's defence, and how its messages leave.

    Args:
        defense: Its transforms run on the model's change. With ``dp`` the local training has to
            be DP-SGD, as far as the framework's integration supports it.
        wire: Send the change as gradguard's bytes, for a server that decodes them.
        buffers: ``"withhold"`` or ``"send"``, see :func:`gradguard.protect`.
        client_dp: Client-level DP before the transforms.
        max_epsilon: Nothing is sent that would cost more than this in all.
        aggregated: That the server sees only the sum over the cohort of ``defense``.
        simulation_seed: For simulation only: the noise is then known, and epsilon infinite.

    Raises:
        TypeError, ValueError: Something is of another type, or they contradict each other.
    """

    defense: Defense
    wire: bool = False
    buffers: Buffers | None = None
    client_dp: ClientDP | None = None
    max_epsilon: float | None = None
    aggregated: bool = False
    simulation_seed: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.defense, Defense):
            raise TypeError(f"expected a Defense, got {self.defense!r}")
        for name in ("wire", "aggregated"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        if self.buffers not in (None, "withhold", "send"):
            raise ValueError(f"buffers must be 'withhold' or 'send', got {self.buffers!r}")
        seed = self.simulation_seed
        if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
            raise ValueError(f"simulation_seed must be a whole number, got {seed!r}")
        _check_sums(self)
        _check_privacy(self)

    @property
    def is_private(self) -> bool:
        """Whether messages have an epsilon, known noise or not."""
        return self.client_dp is not None or self.defense.dp is not None

    @property
    def is_off(self) -> bool:
        """Whether updates leave as they are."""
        return not self.is_private and not self.defense.chain.links

    def described(self) -> str:
        """What decides what a message is: it may not change during a run."""
        dp = self.client_dp
        facts = {
            "defense": json.loads(self.defense.to_json()),
            "buffers": self.buffers,
            "client_dp": None if dp is None else [dp.noise_multiplier, dp.max_update_norm],
            "seed": self.simulation_seed,
        }
        return json.dumps(facts)

    def new_guard(self, model: nn.Module | Entries, who: str) -> UpdateGuard:
        """The guard of a client that has sent nothing yet.

        Args:
            model: The client's, or its entries.
            who: Names the client; no two simulated ones share noise.
        """
        dp, most = self.client_dp, self.max_epsilon
        guard = UpdateGuard(self.defense.chain, model, buffers=self.buffers)
        if dp is not None:
            ledger = PrivacyLedger(max_epsilon=most, delta=None if most is None else dp.delta)
            guard = PrivateUpdateGuard(model, dp, after=self.defense.chain, ledger=ledger)
        if self.simulation_seed is not None:
            guard.reset(seed_of(self.simulation_seed, who))
        return guard


def seed_of(seed: int, who: str) -> int:
    """The seed of one simulated client.

    >>> seed_of(0, "site-1") == seed_of(0, "site-2")
    False
    """
    digest = hashlib.blake2b(f"{seed}/{who}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _check_sums(settings: UpdateSettings) -> None:
    name, cohort = settings.defense.name, settings.defense.cohort
    if cohort > 1 and not settings.aggregated:
        raise ValueError(
            f"defence {name!r} rests on a server that sees only the sum of the messages of "
            f"{cohort} clients, and gradguard does not aggregate: say aggregated=True if your "
            "secure aggregation does, and drop the cohort if not"
        )
    if settings.aggregated and settings.wire:
        raise ValueError(
            "encoded messages cannot be summed by secure aggregation: leave out wire, or aggregated"
        )


def _check_privacy(settings: UpdateSettings) -> None:
    if settings.client_dp is not None and settings.defense.dp is not None:
        raise ValueError(
            f"defence {settings.defense.name!r} has DP-SGD, and client-level DP was asked for "
            "too: their epsilons are of different units; choose one"
        )
    if settings.is_private:
        check_transform(settings.defense.chain)
    if settings.is_private and settings.buffers == "send":
        raise ValueError("with differential privacy buffers are withheld: leave out buffers='send'")
    if settings.max_epsilon is not None:
        check_number("max_epsilon", settings.max_epsilon)
        if not settings.is_private:
            raise ValueError(
                "max_epsilon was given, and nothing here has an epsilon: give client-level DP or "
                "a defence with dp"
            )
