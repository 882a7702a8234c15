"""The guarded optimizer: the one place where a transform meets a training loop.

It wraps, and does not hook. torch's ``register_step_pre_hook`` looks made for this, but
``deepcopy`` and pickle drop hooks without a word, a hook on fused Adam under ``GradScaler`` sees
gradients multiplied by the loss scale, and Opacus' optimizer has no hooks. Nor does it forward
unknown attributes: ``_step_supports_amp_scaling`` would bring the scaled gradients back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradguard.aliasing import storages, unaliased
from gradguard.checkpoint import check_structure, cloned, extended, moved
from gradguard.core import Chain, Grads, GradTransform, State
from gradguard.finite import NonFiniteGradientError
from gradguard.freshness import Fingerprint, fingerprint, unchanged
from gradguard.randomness import reseeded
from gradguard.routing import NamedParameters, named_parameters

_KEY = "gradguard"
_STALE = (
    "these gradients were already transformed: transforming them again would send a different "
    "message than intended. Run zero_grad() and backward() before the next step() or release()"
)


def guard(
    optimizer: Optimizer, transform: GradTransform, *, model: nn.Module | None = None
) -> GuardedOptimizer:
    """Wrap ``optimizer`` so that it, and whoever sees its gradients, gets defended ones only.

    Args:
        optimizer: Any ``torch.optim`` optimizer.
        transform: What is done to the gradients before every step.
        model: Where parameter names come from. Needed by ``Only`` and ``Withhold`` unless the
            optimizer was built from ``model.named_parameters()``.

    >>> from gradguard.sign import Sign
    >>> layer = nn.Linear(2, 1)
    >>> optimizer = guard(torch.optim.SGD(layer.parameters(), lr=0.1), Sign(), model=layer)
    >>> layer(torch.tensor([[1.0, 3.0]])).sum().backward()
    >>> optimizer.release()
    {'weight': tensor([[2., 2.]]), 'bias': tensor([1.])}
    """
    return GuardedOptimizer(optimizer, transform, model=model)


class GuardedOptimizer(Optimizer):
    """Run ``transform`` on the gradients immediately before ``inner`` consumes them.

    Guarantees:

    - with ``Identity()`` training is bitwise that of the bare optimizer;
    - every gradient that ``inner`` sees was transformed exactly once, closures included; after a
      step or release ``p.grad`` holds the defended gradient, so no raw one is left behind;
    - deepcopy and pickle keep the guard; a checkpoint resumes bitwise, noise included;
    - whatever could let an untransformed gradient through raises.

    A closure spends fresh noise in each evaluation. With gradients sharded over processes (FSDP)
    every process transforms its own shard only. ``Identity()`` passes NaN and infinity as the
    bare optimizer would; every other transform refuses them.

    Raises:
        TypeError: ``inner`` is Opacus' DPOptimizer, or a gradient is sparse.
        RuntimeError: A gradient is not from a fresh backward pass; a transform added or dropped a
            gradient or changed its form; parameters were changed behind the guard's back.
        NonFiniteGradientError: A gradient contains NaN or infinity; nothing has changed then.
    """

    def __init__(
        self, inner: Optimizer, transform: GradTransform, *, model: nn.Module | None = None
    ) -> None:
        if hasattr(inner, "original_optimizer"):  # Opacus: it overwrites p.grad inside step()
            raise TypeError(
                f"{type(inner).__name__} overwrites p.grad inside step(), so a guard around it "
                "would have no effect. Guard the plain optimizer and pass the guard on: "
                "make_private(optimizer=guard(optimizer, transform), ...)"
            )
        if isinstance(transform, type) or not isinstance(transform, GradTransform):
            raise TypeError(
                f"transform must have init and update, got {transform!r}; combine several with "
                "chain(...)"
            )
        self.inner, self.transform = inner, transform
        # The parameters, not the model: enough for names, and safe to copy and pickle.
        # Under all their names, because a pattern may mean the second place of a tied weight.
        self._known = [] if model is None else list(model.named_parameters(remove_duplicate=False))
        self._begin()
        params = self._named()
        self._guarded = list(params)
        self.guard_state: State = transform.init(params)

    def _begin(self) -> None:
        # Creates torch's hook tables without registering the parameters a second time.
        super().__setstate__({})
        self._seen: Fingerprint = []
        self._released = False

    # Views, never copies: schedulers and GradScaler change these in place.
    param_groups = property(lambda self: self.inner.param_groups)
    state = property(lambda self: self.inner.state)
    defaults = property(lambda self: self.inner.defaults)

    @property
    def names(self) -> tuple[str, ...] | None:
        """Parameter names in optimizer order, where they are known."""
        return getattr(self._named(), "names", None)

    def release(self) -> dict[str, Tensor] | Grads:
        """Transform ``p.grad`` in place now, and return a copy of what may be sent.

        For clients that send gradients without stepping. A ``step()`` that follows uses these
        same gradients and does not transform them again. With GradScaler call
        ``scaler.unscale_(optimizer)`` first: what is sent has the scale that ``p.grad`` has.

        Returns:
            Defended gradients by name where all names are known, else in optimizer order. A
            parameter without gradient is left out of the former and ``None`` in the latter.
        """
        self._transform_grads()
        self._released = True
        # Copies of what is sent and of nothing else: a view would carry, when it is saved, all
        # the memory behind it, which may hold what another transform withholds.
        sent: Grads = [None if p.grad is None else p.grad.detach().clone() for p in self._params()]
        names = self.names
        if names is None:
            return sent
        return {n: g for n, g in zip(names, sent, strict=True) if g is not None}

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Transform the gradients and let the inner optimizer step; see :meth:`release`.

        With a closure, every evaluation of it is transformed, and ``inner`` sees no gradient from
        before the first one.
        """
        released, self._released = self._released, False
        if closure is not None:
            result = self._step_with(closure)
        else:
            if not (released and all(self._stale())):
                self._transform_grads()
            result = self.inner.step()
        self._remember()  # some optimizers write to p.grad
        return result

    def _step_with(self, closure: Callable[[], Any]) -> Any:
        hidden = [(p, p.grad) for p in self._params()]

        def show() -> None:
            while hidden:
                p, grad = hidden.pop()
                p.grad = grad

        def guarded() -> Any:  # LBFGS evaluates several times: it must never see a raw gradient
            show()
            loss = closure()
            self._transform_grads()
            return loss

        for p, _ in hidden:
            p.grad = None
        try:
            result = self.inner.step(guarded)
            if hidden:
                raise RuntimeError(
                    f"{type(self.inner).__name__} did not evaluate the closure, so there was no "
                    "gradient to defend; call backward() and step() without a closure"
                )
        finally:
            show()
        return result

    @torch.no_grad()
    def _transform_grads(self) -> None:
        params = self._params()
        self._check_params(params)
        if any(self._stale()):
            raise RuntimeError(_STALE)
        raw: Grads = [p.grad for p in params]
        self._check_dense(raw)
        defended, state = unaliased([*self._updated(raw)], memory=storages(raw))
        self._check_form(raw, defended)
        # State first and memory last, even if a write fails: the noise is spent by then.
        self.guard_state = state
        try:
            for old, new in zip(raw, defended, strict=True):
                if old is not None:
                    old.copy_(new)  # in place: DDP buckets and CUDA graphs alias p.grad
        finally:
            self._remember()

    def _check_params(self, params: Sequence[Tensor]) -> None:
        # By identity: in another order, a layer that is withheld would be sent.
        known = self._guarded
        if len(params) != len(known) or any(a is not b for a, b in zip(params, known, strict=True)):
            raise RuntimeError(
                f"the inner optimizer has {len(params)} parameters that are not the "
                f"{len(known)} which the guard knows, in this order; add parameters with "
                "add_param_group() of the guard, and guard anew after any other change"
            )

    def _check_form(self, raw: Grads, defended: Grads) -> None:
        for index, (old, new) in enumerate(zip(raw, defended, strict=True)):
            if (old is None) != (new is None):
                raise RuntimeError(f"{self.transform!r} added or dropped a gradient")
            if old is None or new is None:
                continue
            before, after = (tuple(old.shape), old.dtype), (tuple(new.shape), new.dtype)
            if before != after:  # copy_ would broadcast and cast without a word
                raise RuntimeError(
                    f"{self.transform!r} changed the gradient of parameter {index}: expected "
                    f"{before}, got {after}"
                )

    def _updated(self, raw: Grads) -> tuple[Grads, State]:
        try:
            return self.transform.update(raw, self.guard_state)
        except NonFiniteGradientError as error:
            if error.name is not None or self.names is None:
                raise
            name = self.names[error.index]
            raise NonFiniteGradientError(error.index, name=name, what=error.what) from None

    def _check_dense(self, grads: Grads) -> None:
        for index, grad in enumerate(grads):
            if grad is not None and grad.layout != torch.strided:
                raise TypeError(
                    f"the gradient of parameter {index} is sparse, which no transform can read; "
                    "build the embedding with sparse=False"
                )

    def _stale(self) -> list[bool]:
        return unchanged(self._params(), self._seen)

    def _remember(self) -> None:
        self._seen = fingerprint(self._params())

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, as the inner optimizer does."""
        self.inner.zero_grad(set_to_none)

    def reset(self, seed: int | None = None) -> None:
        """Forget residuals and start new random streams, as a client in its first round.

        Args:
            seed: See :meth:`reseed`.
        """
        self.guard_state = self.transform.init(self._named())
        if seed is not None:
            self.reseed(seed)

    def reseed(self, seed: int | None = None) -> None:
        """Start new random streams, from the operating system or, for simulation, from a seed.

        A deepcopy or an unpickled guard continues the noise stream of the original: call this on
        every copy that acts as another client. Two clients with the same stream add the same
        noise, which a server cancels by subtraction.
        """
        self.guard_state = reseeded(self.guard_state, seed)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters: residuals grow, and random streams continue where they were."""
        self.inner.add_param_group(param_group)
        try:
            params = self._named()
            self.guard_state = extended(self.guard_state, self.transform.init(params))
        except Exception:
            self.inner.param_groups.pop()  # a refused group must not train unguarded
            raise
        self._guarded = list(params)

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's state and a copy of the guard's, under the key ``gradguard``."""
        return {**self.inner.state_dict(), _KEY: cloned(self._labelled(self.guard_state))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load both states; a checkpoint of another chain of transforms raises ``ValueError``."""
        expected = self._labelled(self.transform.init(self._named()))
        check_structure(state_dict.get(_KEY), expected)
        self.inner.load_state_dict({k: v for k, v in state_dict.items() if k != _KEY})
        state = moved(state_dict[_KEY], expected)
        self.guard_state = state if isinstance(self.transform, Chain) else state[self._label]

    @property
    def _label(self) -> str:
        return f"0:{type(self.transform).__name__}"

    def _labelled(self, state: State) -> State:
        # As a chain of one: the states of many transforms look alike without their names.
        return state if isinstance(self.transform, Chain) else {self._label: state}

    def _params(self) -> list[Tensor]:
        return [p for group in self.inner.param_groups for p in group["params"]]

    def _named(self) -> list[Tensor] | NamedParameters:
        return named_parameters(self.inner.param_groups, known=self._known)

    def __getstate__(self) -> dict[str, Any]:
        kept = ("inner", "transform", "guard_state", "_known", "_guarded")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def __repr__(self) -> str:
        return f"GuardedOptimizer({self.inner!r}, {self.transform!r})"
