"""The guarded optimizer: the one place where a transform meets a training loop.

It wraps, and does not hook. torch's ``register_step_pre_hook`` looks made for this, but
``deepcopy`` and pickle drop hooks without a word, a hook on fused Adam under ``GradScaler`` sees
gradients multiplied by the loss scale, and Opacus' optimizer has no hooks. Nor does it forward
unknown attributes: ``_step_supports_amp_scaling`` would bring the scaled gradients back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradguard.checkpoint import check_structure, cloned, extended, labelled, moved, unlabelled
from gradguard.closures import step_with
from gradguard.core import Grads, GradTransform, State
from gradguard.finite import NonFiniteGradientError
from gradguard.freshness import Fingerprint, fingerprint, outside_inference_mode, unchanged
from gradguard.guard_checks import STALE, check_dense, check_params, check_whole, check_wrappable
from gradguard.in_place import Before, transformed, write_back
from gradguard.randomness import reseeded
from gradguard.transforms.routing import NamedParameters, named_parameters

_KEY = "gradguard"


def guard(
    optimizer: Optimizer, transform: GradTransform, *, model: nn.Module | None = None
) -> GuardedOptimizer:
    """Wrap ``optimizer`` so that it, and whoever sees its gradients, gets defended ones only.

    Args:
        optimizer: Any ``torch.optim`` optimizer.
        transform: What is done to the gradients before every step.
        model: Where parameter names come from. Needed by ``Only`` and ``Withhold`` unless the
            optimizer was built from ``model.named_parameters()``.

    >>> from gradguard.transforms.sign import Sign
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

    Transforms that can, work in the memory of ``p.grad`` and of the guard's state. If one raises
    after it has written there (a value that overflows half way through a chain), gradients need a
    fresh backward pass; and if residuals or noise are involved, ``step``, ``release`` and
    ``state_dict`` raise ``RuntimeError`` until ``reset()`` or ``load_state_dict()``.
    """

    @outside_inference_mode()
    def __init__(
        self, inner: Optimizer, transform: GradTransform, *, model: nn.Module | None = None
    ) -> None:
        check_wrappable(inner, transform)
        self.inner, self.transform = inner, transform
        # The parameters, not the model: enough for names, and safe to copy and pickle.
        # Under all their names, because a pattern may mean the second place of a tied weight.
        self._known = [] if model is None else list(model.named_parameters(remove_duplicate=False))
        self._begin()
        params = self._named()
        self._guarded = list(params)
        self.guard_state: State = transform.init(params)

    _failure: str | None = None  # of an update that spoilt the state

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

    @outside_inference_mode()
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

    @outside_inference_mode()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Transform the gradients and let the inner optimizer step; see :meth:`release`.

        With a closure, every evaluation of it is transformed, and ``inner`` sees no gradient from
        before the first one.
        """
        check_whole(self._failure)
        released, self._released = self._released, False
        if closure is not None:
            result = step_with(
                self.inner, closure, params=self._params(), transform_grads=self._transform_grads
            )
        else:
            if not (released and all(self._stale())):
                self._transform_grads()
            result = self.inner.step()
        self._remember()  # some optimizers write to p.grad
        return result

    @torch.no_grad()
    def _transform_grads(self) -> None:
        self._released = False
        check_whole(self._failure)
        params = self._params()
        check_params(params, self._guarded)
        if any(self._stale()):
            raise RuntimeError(STALE)
        raw: Grads = [p.grad for p in params]
        check_dense(raw)
        before = Before(raw, self.guard_state)
        try:
            defended, state = transformed(self.transform, raw, self.guard_state)
        except BaseException as error:
            self._note_failure(error, wrote=before.wrote(), spoilt=before.spoilt())
            if isinstance(error, NonFiniteGradientError) and self.names and error.name is None:
                name = self.names[error.index]
                raise NonFiniteGradientError(error.index, name=name, what=error.what) from None
            raise
        # State first and memory last, even if a write fails: the noise is spent by then.
        self.guard_state = state
        try:
            write_back(raw, defended)
        finally:
            self._remember()

    def _note_failure(self, error: BaseException, *, wrote: bool, spoilt: bool) -> None:
        if wrote:
            self._remember()  # neither raw nor defended: only a fresh backward pass mends them
        if spoilt:
            self._failure = f"{type(error).__name__}: {error}"

    def _stale(self) -> list[bool]:
        return unchanged(self._params(), self._seen)

    def _remember(self) -> None:
        self._seen = fingerprint(self._params())

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, as the inner optimizer does."""
        self.inner.zero_grad(set_to_none)

    @outside_inference_mode()
    def reset(self, seed: int | None = None) -> None:
        """Forget residuals and start new random streams, as a client in its first round.

        Args:
            seed: See :meth:`reseed`.
        """
        self.guard_state = self.transform.init(self._named())
        self._failure = None
        if seed is not None:
            self.reseed(seed)

    @outside_inference_mode()
    def reseed(self, seed: int | None = None) -> None:
        """Start new random streams, from the operating system or, for simulation, from a seed.

        A deepcopy or an unpickled guard continues the noise stream of the original: call this on
        every copy that acts as another client. Two clients with the same stream add the same
        noise, which a server cancels by subtraction.
        """
        self.guard_state = reseeded(self.guard_state, seed)

    @outside_inference_mode()
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
        check_whole(self._failure)
        return {**self.inner.state_dict(), _KEY: cloned(labelled(self.transform, self.guard_state))}

    @outside_inference_mode()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load both states; a checkpoint of another chain of transforms raises ``ValueError``."""
        expected = labelled(self.transform, self.transform.init(self._named()))
        check_structure(state_dict.get(_KEY), expected)
        self.inner.load_state_dict({k: v for k, v in state_dict.items() if k != _KEY})
        self.guard_state = unlabelled(self.transform, moved(state_dict[_KEY], expected))
        self._failure = None

    def _params(self) -> list[Tensor]:
        return [p for group in self.inner.param_groups for p in group["params"]]

    def _named(self) -> list[Tensor] | NamedParameters:
        return named_parameters(self.inner.param_groups, known=self._known)

    def __getstate__(self) -> dict[str, Any]:
        kept = ("inner", "transform", "guard_state", "_known", "_guarded", "_failure")
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def __repr__(self) -> str:
        return f"GuardedOptimizer({self.inner!r}, {self.transform!r})"
