"""What goes in and what comes out: presence, shape, layout, finite numbers, signs of zeros."""

from __future__ import annotations

import itertools

import torch

from gradguard.core import Chain, Grads, GradTransform, Identity, walk
from gradguard.laws.checks import form, gradients, require, same
from gradguard.transforms.routing import NamedParameters


def presence(transform: GradTransform, params: NamedParameters) -> None:
    """None in, None out, and a gradient in, a gradient out; also when all are missing."""
    full = gradients(params)
    some: Grads = [g if i % 2 else None for i, g in enumerate(full)]
    none: Grads = [None for _ in full]
    for grads in (full, some, none):
        out, _ = transform.update(grads, transform.init(params))
        where = [g is None for g in out]
        require(where == [g is None for g in grads], transform, "presence", where)


def shape_dtype_device_layout(transform: GradTransform, params: NamedParameters) -> None:
    """Every gradient keeps its shape, dtype, device and strides."""
    grads = gradients(params)
    out, _ = transform.update(grads, transform.init(params))
    for name, old, new in zip(params.names, grads, out, strict=True):
        assert old is not None
        assert new is not None
        before, after = form(old), form(new)
        require(before == after, transform, "shape_dtype_device_layout", (name, before, after))


def finite_in_finite_out(transform: GradTransform, params: NamedParameters) -> None:
    """Finite gradients never become NaN or infinite, tiny and huge ones included.

    A huge gradient may be refused with an ArithmeticError, as noise and rescaling have to.
    """
    state = transform.init(params)
    for scale in (1.0, 0.0, 1e-4, 1e-30):
        grads: Grads = [None if g is None else g * scale for g in gradients(params)]
        out, state = transform.update(grads, state)
        finite = all(bool(torch.isfinite(g).all()) for g in out if g is not None)
        require(finite, transform, "finite_in_finite_out", f"scale {scale}")
    try:
        huge: Grads = [p.detach().sign() * torch.finfo(p.dtype).max for p in params]
        out, _ = transform.update(huge, transform.init(params))
    except ArithmeticError:
        return
    finite = all(bool(torch.isfinite(g).all()) for g in out if g is not None)
    require(finite, transform, "finite_in_finite_out", "the largest numbers of each dtype")


def dropped_coordinates_have_no_sign(transform: GradTransform, params: NamedParameters) -> None:
    """A coordinate set to zero is +0.0: as -0.0 it would still tell the server its sign."""
    grads = gradients(params)
    out, _ = transform.update(grads, transform.init(params))
    for name, old, new in zip(params.names, grads, out, strict=True):
        # Half precision is left out: there, rounding a small value gives -0.0 as well.
        if old is None or new is None or new.dtype.itemsize < 4:
            continue
        signed = bool(((new == 0) & torch.signbit(new) & (old != 0)).any())
        require(not signed, transform, "dropped_coordinates_have_no_sign", name)


def non_finite_is_refused(transform: GradTransform, params: NamedParameters) -> None:
    """NaN and infinity raise an ArithmeticError; ``Identity`` alone may pass them, bitwise."""
    filled = [i for i, p in enumerate(params) if p.numel()]
    bads = (float("nan"), float("inf"), -float("inf"))
    for index, bad, at in itertools.product(filled, bads, (0, -1)):
        grads = gradients(params)
        poisoned = grads[index]
        assert poisoned is not None
        poisoned[(at,) * poisoned.ndim] = bad
        try:
            out, _ = transform.update(grads, transform.init(params))
        except ArithmeticError:
            continue
        nothing = all(isinstance(t, Identity | Chain) for t in walk(transform))
        passed = nothing and same(out, grads)
        require(passed, transform, "non_finite_is_refused", f"{bad} was accepted")
