"""What a guarded Flower client is told, and by whom: its node, its app, or the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flwr.app import Context

from gradguard.defense import Defense
from gradguard.dp import ClientDP
from gradguard.integrations.update_settings import UpdateSettings
from gradguard.serialization import nearest

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
_VOUCHING = frozenset({"aggregated", "buffers", "simulation-seed"})
_CLIENT_DP = ("noise-multiplier", "max-update-norm", "delta")


def settings_for(context: Context, given: Mapping[str, Any]) -> UpdateSettings:
    """The settings of the client that ``context`` belongs to.

    What the node's own config says holds, whatever app and run say: it is the client's owner who
    writes it. What the app's code says holds next, and a run that says otherwise is refused. Where
    a node says anything, the run may not add what weakens it: that messages are aggregated, that
    buffers are sent, a seed.

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
    if node and (weakened := sorted((run.keys() & _VOUCHING) - node.keys() - given.keys())):
        raise ValueError(
            f"the run's config has {PREFIX}{weakened[0]}, and this node has settings of its own, "
            "which it could weaken; only the node or the app's code may say it"
        )
    found = {**run, **given, **node}
    if "defense" not in found:
        raise ValueError(
            "no defence is given: GuardMod(Defense(...)), or the text of Defense.to_json() as "
            f"{PREFIX}defense in the config of the node or the run"
        )
    stated = {key.replace("-", "_"): found[key] for key in found if key not in _CLIENT_DP}
    return UpdateSettings(**stated, client_dp=_client_dp(found))


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
