"""A client's copy for measurements: its own residuals, other noise, and nothing shared with it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from gradguard import GuardedOptimizer
from gradguard.checkpoint import cloned, moved
from gradguard.client import Loss
from gradguard.core import Grads
from gradguard.evaluation.seeding import derive
from gradguard.randomness import reseeded

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module itself, without DistributedDataParallel or Opacus around it."""
    while True:
        if isinstance(model, _WRAPPERS):
            model = model.module
        elif isinstance(getattr(model, "_module", None), nn.Module):
            model = model._module  # type: ignore[assignment]  # Opacus' wrapper
        else:
            return model


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy on the CPU in training mode, without any module's hooks and Lightning's trainer.

    Hooks are copied as references: those of the copy would run on simulated messages, and write
    into what the client's own hooks write into. The trainer holds the data.

    Not guaranteed: that the copy computes what the model does where a hook changes that.

    Raises:
        ValueError: A hook of ``torch.nn.utils`` makes a parameter, so that it cannot be left out.
    """
    plain = unwrapped(model)
    trainer = getattr(plain, "_trainer", None)
    memo: dict[int, object] = {} if trainer is None else {id(trainer): None}
    kept = {module: _hook_parts(module) for module in plain.modules()}
    for parts in kept.values():
        _check_hooks(parts)
    try:
        for module, parts in kept.items():
            for name, part in parts.items():
                if isinstance(part, dict):
                    module.__dict__[name] = type(part)()
                else:
                    del module.__dict__[name]
        copied = copy.deepcopy(plain, memo)
    finally:
        for module, parts in kept.items():
            module.__dict__.update(parts)
    return copied.cpu().train()


def _hook_parts(module: nn.Module) -> dict[str, Any]:
    """Tables of hooks; and what Opacus leaves: handles of hooks, activations it has kept."""
    own = {"autograd_grad_sample_hooks", "activations", "max_batch_len", "ddp_hooks"}
    held = module.__dict__.items()
    return {n: p for n, p in held if n in own or ("_hooks" in n and isinstance(p, dict))}


def _check_hooks(parts: dict[str, Any]) -> None:
    for hook in parts.get("_forward_pre_hooks", {}).values():
        kind = type(hook)
        if kind.__module__.startswith("torch.nn.utils"):
            raise ValueError(
                f"a hook of {kind.__module__} ({kind.__name__}) makes a parameter in every "
                "forward pass, and a monitor's copy of the model has no hooks; use "
                "torch.nn.utils.parametrizations, or make the pruning permanent"
            )


def guarded_names(guard: GuardedOptimizer, model: nn.Module) -> tuple[str, ...]:
    """The names in ``model`` of the guard's parameters, in the guard's order.

    Raises:
        ValueError: A parameter of the guard is not the model's, or has another name there.
    """
    by_identity = {id(p): name for name, p in unwrapped(model).named_parameters()}
    params = [p for group in guard.param_groups for p in group["params"]]
    names = tuple(by_identity.get(id(p), "") for p in params)
    if "" in names:
        raise ValueError(
            "the guard has parameters that are not in model=...; give the model that it trains"
        )
    if guard.names is not None and tuple(guard.names) != names:
        odd = next((a, b) for a, b in zip(guard.names, names, strict=True) if a != b)
        raise ValueError(
            f"the guard calls a parameter {odd[0]!r} that is {odd[1]!r} in model=...; give the "
            "module from which the guard has its names"
        )
    return names


class OwnStateClient:
    """The client that holds ``guard``, as it is now, on other batches.

    Every call gives the message of its *next* round: residuals are those of the guard at the time
    this was made, and noise is new in each call.

    Guarantees:

    - the guard, its state, its noise and ``p.grad`` are read and never written.

    Args:
        guard: Its transform and a copy of its state are used.
        model: That it trains.
        loss: Predictions and labels to a scalar.
        seed: Of the noise of all messages; not that of the guard.
    """

    def __init__(self, guard: GuardedOptimizer, model: nn.Module, *, loss: Loss, seed: int) -> None:
        self.model, self.loss, self.seed = plain_copy(model), loss, seed
        self.names = guarded_names(guard, model)
        named = dict(self.model.named_parameters())
        self.params = [named[name] for name in self.names]
        self._order = [name for name, p in named.items() if p.requires_grad]
        optimizer = torch.optim.SGD(self.params, lr=0.0)  # never stepped
        self.guard = GuardedOptimizer(optimizer, guard.transform, model=self.model)
        self._state = cloned(moved(guard.guard_state, self.guard.guard_state))
        self._sent = 0

    def __call__(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        with torch.enable_grad():
            loss = self.loss(self.model(inputs), labels)
            return self.release(torch.autograd.grad(loss, self.params, allow_unused=True))

    def release(self, grads: Grads | tuple[Tensor | None, ...]) -> dict[str, Tensor]:
        """The message for given raw gradients, in the guard's order; zeros where there is none."""
        self._sent += 1
        for p, grad in zip(self.params, grads, strict=True):
            p.grad = None if grad is None else grad.detach().cpu().clone()
        self.guard.guard_state = reseeded(cloned(self._state), derive(self.seed, self._sent))
        self.guard.release()
        sent = {n: p.grad for n, p in zip(self.names, self.params, strict=True)}
        for p in self.params:
            p.grad = None
        named = dict(self.model.named_parameters())
        message = {}
        for name in self._order:
            grad = sent.get(name)
            message[name] = torch.zeros_like(named[name].detach()) if grad is None else grad
        return message
