"""What one rank sends in one step: its gradient, transformed, or why there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradguard.aliasing import storages, unaliased
from gradguard.core import Grads, GradTransform, State
from gradguard.finite import NonFiniteGradientError, check_finite
from gradguard.guard_checks import check_form
from gradguard.transforms.routing import NamedParameters, named_parameters
from gradguard.wire.sending import encode_stated


@dataclass(frozen=True)
class RankMessage:
    """A rank's transformed gradient and the state after it; or an error, and neither of them.

    ``encoded`` is the gradient as bytes, where bytes are what is sent.
    """

    grads: Grads
    state: State
    encoded: bytes = b""
    error: Exception | None = None


def transformed(
    transform: GradTransform,
    gradients: Callable[[], Grads],
    state: State,
    *,
    scale: float,
    names: tuple[str, ...] | None,
) -> RankMessage:
    """Apply ``transform``; whatever it raises is kept, for the other ranks wait for an answer.

    Args:
        transform: Of this rank.
        gradients: Gives the raw gradients; they are not written to.
        state: Of ``transform``; kept as it is, in case another rank fails.
        scale: What the loss was multiplied by; the transform sees true gradients.
        names: Under which the message is encoded; ``None`` if it is not.
    """
    try:
        raw = gradients()
        if scale != 1:
            raw = [None if g is None else g / scale for g in raw]
        check_finite(raw)
        sent, new = transform.update(raw, state)
        check_form(transform, raw, sent)
        check_finite(sent)
        sent, new = unaliased([*sent], memory=storages(raw)), unaliased(new, memory=storages(raw))
        encoded = b"" if names is None else _encoded(sent, new, names)
    except Exception as error:
        return RankMessage([], {}, error=error)
    return RankMessage(sent, new, encoded)


def _encoded(grads: Grads, state: State, names: tuple[str, ...]) -> bytes:
    message = {name: g for name, g in zip(names, grads, strict=True) if g is not None}
    return encode_stated(message, state, names=names)


def reason(error: Exception, params: Sequence[Tensor]) -> str:
    """The error in words, with the parameter's name where it is known."""
    if isinstance(error, NonFiniteGradientError) and isinstance(params, NamedParameters):
        name = params.names[error.index]
        error = NonFiniteGradientError(error.index, name=name, what=error.what)
    return f"{type(error).__name__}: {error}"


def trained(model: nn.Module) -> list[Tensor] | NamedParameters:
    """The parameters whose gradients DDP exchanges, with their names, in the model's order.

    >>> trained(nn.Linear(2, 1)).names
    ('weight', 'bias')
    """
    if getattr(model, "_delay_all_reduce_params", None):
        raise ValueError(
            "DDP averages the parameters of delay_all_reduce_named_params without asking the hook, "
            "so their raw gradients would be sent; build DDP without that argument"
        )
    ignored: set[str] = set()
    if isinstance(model, DistributedDataParallel):
        ignored = set(cast(Iterable[str], model.parameters_to_ignore))
        model = model.module
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad and n not in ignored]
    known = list(model.named_parameters(remove_duplicate=False))
    return named_parameters([{"params": [p for _, p in named]}], known=known)
