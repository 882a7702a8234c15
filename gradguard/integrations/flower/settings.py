"""What a guarded Flower client is told, and by whom: its node, its app, or the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import Context

from gradguard.defense import Defense
from gradguard.dp import ClientDP
from gradguard.dp.refusals import check_transform
from gradguard.dpsgd import check_number
from gradguard.serialization import nearest
from gradguard.updates.protection import Buffers

PREFIX = "gradguard-"
_TYPES: Mapping[str, tuple[type, ...]] = {
    "defense": (str,),
    "wire": (bool,),
    "buffers": (str,),
    "noise-multiplier": (int, float),
    "max-update-norm": (int, float),
    "delta": (int, float),
    "max-epsilon": (int, float),
    "aggregated": (bool,),
    "simulation-seed": (int,),
}
_CLIENT_DP = ("noise-multiplier", "max-update-norm", "delta")


@dataclass(frozen=True)
class GuardSettings:
    """Everything that decides what a client sends.

    Args:
        defense: Its transforms run on the model's change. With ``dp`` the local training has to
            be DP-SGD, see :func:`gradguard.integrations.flower.dp_sgd`.
        wire: Send the change as gradguard's bytes, for a server with ``DecodingStrategy``; else
            a whole model in Flower's own arrays, which any strategy reads and which saves nothing.
        buffers: ``"withhold"`` or ``"send"``, see :func:`gradguard.protect`.
        client_dp: Client-level DP before the transforms.
        max_epsilon: Nothing is sent that would cost more than this in all.
        aggregated: That the server sees only the sum over the cohort of ``defense``.
        simulation_seed: For simulation only: the noise is then known, and epsilon infinite.
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
        name, cohort = self.defense.name, self.defense.cohort
        if cohort > 1 and not self.aggregated:
            raise ValueError(
                f"defence {name!r} rests on a server that sees only the sum of the messages of "
                f"{cohort} clients, and gradguard does not aggregate: say aggregated=True if "
                "your secure aggregation does, and drop the cohort if not"
            )
        if self.aggregated and self.wire:
            raise ValueError(
                "encoded messages cannot be summed by secure aggregation: leave out wire, or "
                "aggregated"
            )
        if self.client_dp is not None and self.defense.dp is not None:
            raise ValueError(
                f"defence {name!r} has DP-SGD, and client-level DP was asked for too: their "
                "epsilons are of different units; choose one"
            )
        if self.is_private:
            check_transform(self.defense.chain)
        if self.client_dp is not None and self.buffers == "send":
            raise ValueError("with client-level DP buffers are withheld; leave out buffers='send'")
        if self.buffers not in (None, "withhold", "send"):
            raise ValueError(f"buffers must be 'withhold' or 'send', got {self.buffers!r}")
        if self.max_epsilon is not None:
            check_number("max_epsilon", self.max_epsilon)
            if not self.is_private:
                raise ValueError(
                    "max_epsilon was given, and nothing here has an epsilon: give client-level "
                    "DP or a defence with dp"
                )

    @property
    def is_private(self) -> bool:
        """Whether messages have an epsilon, known noise or not."""
        return self.client_dp is not None or self.defense.dp is not None

    @property
    def is_off(self) -> bool:
        """Whether updates leave as they are."""
        return not self.is_private and not self.defense.chain.links


def settings_for(context: Context, given: Mapping[str, Any]) -> GuardSettings:
    """The settings of the client that ``context`` belongs to.

    What the node's own config says holds, whatever app and run say: it is the client's owner who
    writes it. What the app's code says holds next, and a run that says otherwise is refused.

    Args:
        given: By the app's code, under the names of the config without their prefix.

    Raises:
        ValueError: A key is unknown or of another type, app and run contradict each other, or
            there is no defence.
    """
    node, run = _read(context.node_config, "node"), _read(context.run_config, "run")
    for key in given.keys() & run.keys():
        if key not in node and given[key] != run[key]:
            raise ValueError(
                f"the run's config has {PREFIX}{key} = {run[key]!r} and the app's code "
                f"{given[key]!r}; only a node's own config may overrule the code"
            )
    found = {**run, **given, **node}
    if "defense" not in found:
        raise ValueError(
            "no defence is given: GuardMod(Defense(...)), or the text of Defense.to_json() as "
            f"{PREFIX}defense in the config of the node or the run"
        )
    stated = {key.replace("-", "_"): found[key] for key in found if key not in _CLIENT_DP}
    return GuardSettings(**stated, client_dp=_client_dp(found))


def plain_client_dp(dp: ClientDP | None) -> dict[str, float]:
    """As its entries in a config."""
    if dp is None:
        return {}
    values = (dp.noise_multiplier, dp.max_update_norm, dp.delta)
    return dict(zip(_CLIENT_DP, values, strict=True))


def _read(config: Mapping[str, Any], whose: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        if not key.startswith(PREFIX):
            continue
        name = key.removeprefix(PREFIX)
        if name not in _TYPES:
            known = [PREFIX + other for other in _TYPES]
            raise ValueError(f"the {whose}'s config: unknown key {key!r}; {nearest(key, known)}")
        wanted = _TYPES[name]
        if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
            kinds = " or ".join(kind.__name__ for kind in wanted)
            raise ValueError(f"the {whose}'s config: {key} must be {kinds}, got {value!r}")
        found[name] = Defense.from_json(str(value)) if name == "defense" else value
    return found


def _client_dp(found: Mapping[str, Any]) -> ClientDP | None:
    stated = {key.replace("-", "_"): found[key] for key in _CLIENT_DP if key in found}
    if not stated:
        return None
    if missing := {"noise_multiplier", "max_update_norm"} - stated.keys():
        raise ValueError(
            f"client-level DP needs {PREFIX}{min(missing).replace('_', '-')} as well as "
            f"{', '.join(PREFIX + key.replace('_', '-') for key in stated)}"
        )
    return ClientDP(**stated)
