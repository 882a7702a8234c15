"""What a guarded NVFlare site is told beside what all clients are, in scalars of a JSON file."""

from __future__ import annotations

import importlib
from functools import lru_cache

from nvflare.apis.filter import Filter, FilterChainType, FilterContextKey, FilterSource
from nvflare.apis.fl_constant import FilterKey, FLContextKey
from nvflare.apis.fl_context import FLContext
from torch import nn

from gradguard.dp import ClientDP
from gradguard.dp.client_level import PrivateUpdateGuard
from gradguard.integrations.nvflare.site_ledger import check_name
from gradguard.integrations.update_settings import UpdateSettings
from gradguard.updates.update_guard import UpdateGuard


def check_place(of: Filter, fl_ctx: FLContext) -> None:
    """Raise unless a filter works on what a site sends."""
    chain = of.get_prop(FilterContextKey.CHAIN_TYPE)
    incoming = fl_ctx.get_prop(FLContextKey.FILTER_DIRECTION) == FilterKey.IN
    if incoming or chain == FilterChainType.TASK_DATA_CHAIN:
        raise ValueError(
            "GuardFilter defends what a site sends: put it into the site's or the client app's "
            "task_result_filters, with direction out or none"
        )


def check_site(
    settings: UpdateSettings, *, ledger: object, model: object, joins_late: object
) -> None:
    """Raise unless a filter can keep to ``settings`` and the rest of its arguments."""
    if not (model is None or isinstance(model, str)):
        raise ValueError(f"model must be 'module:factory', got {model!r}")
    if not isinstance(joins_late, bool):
        raise ValueError(f"joins_late must be true or false, got {joins_late!r}")
    if settings.defense.dp is not None:
        raise ValueError(
            f"defence {settings.defense.name!r} has DP-SGD, whose noise is added to gradients "
            "while the client trains; a filter sees only the update. Leave out dp, and give the "
            "filter noise_multiplier and max_update_norm for client-level DP"
        )
    if ledger is None:
        return
    check_name(ledger)
    if settings.client_dp is None:
        raise ValueError(
            "ledger was given, and nothing here has an epsilon: give noise_multiplier and "
            "max_update_norm"
        )
    if settings.simulation_seed is not None:
        raise ValueError("a simulation is not booked in a site's ledger; leave out one")


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


def named_model(factory: str, of: Filter, fl_ctx: FLContext) -> nn.Module:
    """The model that a filter names; made once, and not to be changed.

    Args:
        factory: ``"module:factory"``.
        of: The filter, of a site's or server's own file, or of a job.

    Raises:
        ValueError: The filter is of a job that may bring no code, or see :func:`model_of`.
    """
    meta = fl_ctx.get_prop(FLContextKey.JOB_META) or {}
    # A job's text would otherwise call what it likes where it is allowed no code.
    if of.get_prop(FilterContextKey.SOURCE) == FilterSource.JOB and meta.get("byoc") is not True:
        raise ValueError(
            "model names code, and this job may bring none; put the filter into privacy.json, or "
            "leave out model"
        )
    return model_of(factory)


@lru_cache(maxsize=8)
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
