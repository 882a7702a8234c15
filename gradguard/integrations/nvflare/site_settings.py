"""What a guarded NVFlare site is told, in the scalars that a JSON file holds."""

from __future__ import annotations

import hashlib
import importlib
import json
from dataclasses import dataclass

from torch import nn

from gradguard.defense import Defense
from gradguard.dp import ClientDP, PrivacyLedger
from gradguard.dp.client_level import PrivateUpdateGuard
from gradguard.dp.refusals import check_transform
from gradguard.dpsgd import check_number
from gradguard.integrations.nvflare.site_ledger import check_name
from gradguard.updates.layout import Entries
from gradguard.updates.protection import Buffers
from gradguard.updates.update_guard import UpdateGuard


@dataclass(frozen=True)
class SiteSettings:
    """Everything that decides what a site sends.

    Args:
        defense: Its transforms run on the model's change.
        client_dp: Client-level DP before the transforms.
        max_epsilon: Nothing is sent that would cost more than this in all.
        ledger: The name of one for all jobs on the site's data.
        buffers: ``"withhold"`` or ``"send"``, see :func:`gradguard.protect`.
        wire: Send the change as gradguard's bytes, for a server with ``DecodingFilter``.
        aggregated: That the server sees only the sum over the cohort of ``defense``.
        simulation_seed: For simulation only: the noise is then known, and epsilon infinite.

    Raises:
        ValueError: They contradict each other.
    """

    defense: Defense
    client_dp: ClientDP | None = None
    max_epsilon: float | None = None
    ledger: str | None = None
    buffers: Buffers | None = None
    wire: bool = False
    aggregated: bool = False
    simulation_seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("wire", "aggregated"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        if self.buffers not in (None, "withhold", "send"):
            raise ValueError(f"buffers must be 'withhold' or 'send', got {self.buffers!r}")
        seed = self.simulation_seed
        if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
            raise ValueError(f"simulation_seed must be a whole number, got {seed!r}")
        _check_defense(self)
        _check_privacy(self)

    @property
    def is_off(self) -> bool:
        """Whether updates leave as they are."""
        return self.client_dp is None and not self.defense.chain.links

    def described(self) -> str:
        """What decides what a message is: it may not change during a job."""
        dp = self.client_dp
        facts = {
            "defense": json.loads(self.defense.to_json()),
            "buffers": self.buffers,
            "client_dp": None if dp is None else [dp.noise_multiplier, dp.max_update_norm],
            "seed": self.simulation_seed,
        }
        return json.dumps(facts)

    def new_guard(self, model: nn.Module | Entries) -> UpdateGuard:
        """The guard of a site that has sent nothing yet."""
        if self.client_dp is None:
            return UpdateGuard(self.defense.chain, model, buffers=self.buffers)
        ledger = PrivacyLedger()
        if self.max_epsilon is not None:
            ledger = PrivacyLedger(max_epsilon=self.max_epsilon, delta=self.client_dp.delta)
        after = self.defense.chain
        return PrivateUpdateGuard(model, self.client_dp, after=after, ledger=ledger)


def client_dp(
    noise_multiplier: float | None, max_update_norm: float | None, delta: float | None
) -> ClientDP | None:
    """Client-level DP from its scalars; ``None`` where none is given.

    Raises:
        ValueError: Only some are given, or one is out of range.
    """
    if noise_multiplier is None and max_update_norm is None and delta is None:
        return None
    if noise_multiplier is None or max_update_norm is None:
        raise ValueError(
            "client-level DP needs noise_multiplier and max_update_norm, got "
            f"noise_multiplier={noise_multiplier!r}, max_update_norm={max_update_norm!r}"
        )
    if delta is None:
        return ClientDP(noise_multiplier, max_update_norm)
    return ClientDP(noise_multiplier, max_update_norm, delta=delta)


def privacy_of(guard: UpdateGuard) -> dict[str, float | int | str]:
    """What a site's updates have cost so far; empty without DP."""
    if not isinstance(guard, PrivateUpdateGuard):
        return {}
    return {
        "epsilon": guard.epsilon(),
        "delta": guard.dp.delta,
        "unit": "client",
        "releases": guard.ledger.releases,
        "accountant": guard.ledger.accountant,
    }


def site_seed(seed: int, site: str) -> int:
    """The seed of one simulated site: no two of them share noise.

    >>> site_seed(0, "site-1") == site_seed(0, "site-2")
    False
    """
    digest = hashlib.blake2b(f"{seed}/{site}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def model_of(factory: str) -> nn.Module:
    """What the callable ``"module:name"`` makes.

    Raises:
        ValueError: There is none, or it makes no model.
    """
    module, colon, name = factory.partition(":")
    if not (colon and module and name):
        raise ValueError(f"model must be 'module:factory', got {factory!r}")
    try:
        model = getattr(importlib.import_module(module), name)()
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(f"model {factory!r} cannot be made: {error}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"model {factory!r} makes a {type(model).__name__}; expected a nn.Module")
    return model


def _check_defense(settings: SiteSettings) -> None:
    name, cohort = settings.defense.name, settings.defense.cohort
    if cohort > 1 and not settings.aggregated:
        raise ValueError(
            f"defence {name!r} rests on a server that sees only the sum of the messages of "
            f"{cohort} clients, and gradguard does not aggregate: say aggregated=true if your "
            "framework's secure aggregation does, and drop the cohort if not"
        )
    if settings.aggregated and settings.wire:
        raise ValueError(
            "encoded messages cannot be summed by secure aggregation: leave out wire, or aggregated"
        )
    if settings.defense.dp is not None:
        raise ValueError(
            f"defence {name!r} has DP-SGD, whose noise is added to gradients while the client "
            "trains; a filter sees only the update. Leave out dp, and give the filter "
            "noise_multiplier and max_update_norm for client-level DP"
        )


def _check_privacy(settings: SiteSettings) -> None:
    if settings.client_dp is not None:
        check_transform(settings.defense.chain)
        if settings.buffers == "send":
            raise ValueError("with client-level DP buffers are withheld; leave out buffers")
    if settings.max_epsilon is not None:
        check_number("max_epsilon", settings.max_epsilon)
    if settings.ledger is not None:
        check_name(settings.ledger)
        if settings.simulation_seed is not None:
            raise ValueError("a simulation is not booked in a site's ledger; leave out one")
    budgeted = settings.max_epsilon is not None or settings.ledger is not None
    if budgeted and settings.client_dp is None:
        raise ValueError(
            "max_epsilon or ledger was given, and nothing here has an epsilon: give "
            "noise_multiplier and max_update_norm"
        )
