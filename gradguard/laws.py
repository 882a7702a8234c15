"""The laws that every transform obeys, as one check that can be run on anybody's transform."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

import gradguard
from gradguard.checkpoint import check_structure, describe, extended
from gradguard.core import Chain, Grads, GradTransform, Identity, State, walk
from gradguard.randomness import RNG_KEY, STATE_BYTES, has_randomness, reseeded
from gradguard.routing import NamedParameters
from gradguard.serialization import TRANSFORMS, transform_from_plain, transform_to_plain

Law = Callable[[GradTransform, NamedParameters], None]


class LawBrokenError(AssertionError):
    """A transform breaks a law; the message names the law, the transform and what was seen."""


def check_transform(transform: GradTransform, *, named: Mapping[str, Tensor] | None = None) -> None:
    """Run every law on a transform; silence means that all hold.

    Args:
        transform: An instance, such as ``MyTransform(strength=0.5)``.
        named: Parameters by name, whose values serve as gradients. By default a small set with
            every shape, dtype and layout that real models produce; see
            :func:`example_parameters`.

    Raises:
        LawBrokenError: A law does not hold.

    >>> from gradguard.sign import Sign
    >>> check_transform(Sign())
    """
    params = NamedParameters(dict(example_parameters() if named is None else named))
    for law in LAWS:
        law(transform, params)


def example_parameters() -> dict[str, Tensor]:
    """Parameters that a transform must cope with: channels-last, 0-d, empty, half, strided, zero.

    >>> ", ".join(example_parameters())
    'body.weight, body.bias, head.weight, head.bias, scale, empty, half, double, zero'
    """
    rng = torch.Generator().manual_seed(7)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=rng).to(dtype)

    return {
        "body.weight": normal(4, 3, 3, 3).to(memory_format=torch.channels_last),
        "body.bias": normal(4),
        "head.weight": normal(4, 5).t(),
        "head.bias": normal(5),
        "scale": normal(),
        "empty": normal(0, 3),
        "half": normal(6, dtype=torch.float16),
        "double": normal(3, dtype=torch.float64),
        "zero": torch.zeros(7),
    }


def presence(transform: GradTransform, params: NamedParameters) -> None:
    """None in, None out, and a gradient in, a gradient out; also when all are missing."""
    full = _gradients(params)
    some: Grads = [g if i % 2 else None for i, g in enumerate(full)]
    none: Grads = [None for _ in full]
    for grads in (full, some, none):
        out, _ = transform.update(grads, transform.init(params))
        where = [g is None for g in out]
        _require(where == [g is None for g in grads], transform, "presence", where)


def shape_dtype_device_layout(transform: GradTransform, params: NamedParameters) -> None:
    """Every gradient keeps its shape, dtype, device and strides."""
    grads = _gradients(params)
    out, _ = transform.update(grads, transform.init(params))
    for name, old, new in zip(params.names, grads, out, strict=True):
        assert old is not None
        assert new is not None
        before, after = _form(old), _form(new)
        _require(before == after, transform, "shape_dtype_device_layout", (name, before, after))


def purity(transform: GradTransform, params: NamedParameters) -> None:
    """Same in, same out; arguments are not written to, and no global generator moves."""
    grads, state = _gradients(params), transform.init(params)
    before = copy.deepcopy((grads, state))
    versions = [t._version for t in _tensors([grads, state])]
    with _elsewhere():
        world = _world()
        transform.init(params)
        first, second = transform.update(grads, state), transform.update(grads, state)
        still = _same(_world(), world)
    _require(_same(first, second), transform, "purity", "two calls differ")
    # Versions too: a write that happens to change nothing here will change other gradients.
    untouched = versions == [t._version for t in _tensors([grads, state])]
    untouched = untouched and _same((grads, state), before)
    _require(untouched, transform, "purity", "an argument was modified")
    _require(still, transform, "purity", "a global generator moved")


@contextmanager
def _elsewhere() -> Iterator[None]:
    """Global generators where no transform that seeds them may already have put them; restored."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.seed()
        random.seed()
        np.random.seed()
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _world() -> list[Any]:
    return [torch.get_rng_state(), random.getstate(), pickle.dumps(np.random.get_state())]


def state_is_plain(transform: GradTransform, params: NamedParameters) -> None:
    """The state survives torch.save and a weights-only load; its lists have one entry each."""
    state = transform.init(params)
    for _ in range(2):
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        loaded = torch.load(buffer, weights_only=True)
        _require(_same(loaded, state), transform, "state_is_plain", "changed by save and load")
        lengths = set(_list_lengths(state))
        _require(lengths <= {len(params)}, transform, "state_is_plain", f"lists of {lengths}")
        _, state = transform.update(_gradients(params), state)


def state_structure_is_stable(transform: GradTransform, params: NamedParameters) -> None:
    """Steps change values in the state, never its keys, shapes or dtypes."""
    state = transform.init(params)
    before = describe(state)
    for _ in range(3):
        _, state = transform.update(_gradients(params), state)
        _require(describe(state) == before, transform, "state_structure_is_stable", state)


def state_grows(transform: GradTransform, params: NamedParameters) -> None:
    """A parameter added later gets its entry, and shared entries are kept."""
    longer = {**dict(zip(params.names, params, strict=True)), "added": torch.ones(2)}
    state, target = transform.init(params), transform.init(NamedParameters(longer))
    check_structure(extended(state, target), target)


def finite_in_finite_out(transform: GradTransform, params: NamedParameters) -> None:
    """Finite gradients never become NaN or infinite, tiny and huge ones included.

    A huge gradient may be refused with an ArithmeticError, as noise and rescaling have to.
    """
    state = transform.init(params)
    for scale in (1.0, 0.0, 1e-4, 1e-30):
        grads: Grads = [None if g is None else g * scale for g in _gradients(params)]
        out, state = transform.update(grads, state)
        finite = all(bool(torch.isfinite(g).all()) for g in out if g is not None)
        _require(finite, transform, "finite_in_finite_out", f"scale {scale}")
    try:
        huge: Grads = [p.detach().sign() * torch.finfo(p.dtype).max for p in params]
        out, _ = transform.update(huge, transform.init(params))
    except ArithmeticError:
        return
    finite = all(bool(torch.isfinite(g).all()) for g in out if g is not None)
    _require(finite, transform, "finite_in_finite_out", "the largest numbers of each dtype")


def dropped_coordinates_have_no_sign(transform: GradTransform, params: NamedParameters) -> None:
    """A coordinate set to zero is +0.0: as -0.0 it would still tell the server its sign."""
    grads = _gradients(params)
    out, _ = transform.update(grads, transform.init(params))
    for name, old, new in zip(params.names, grads, out, strict=True):
        # Half precision is left out: there, rounding a small value gives -0.0 as well.
        if old is None or new is None or new.dtype.itemsize < 4:
            continue
        signed = bool(((new == 0) & torch.signbit(new) & (old != 0)).any())
        _require(not signed, transform, "dropped_coordinates_have_no_sign", name)


def non_finite_is_refused(transform: GradTransform, params: NamedParameters) -> None:
    """NaN and infinity raise an ArithmeticError; ``Identity`` alone may pass them, bitwise."""
    filled = [i for i, p in enumerate(params) if p.numel()]
    bads = (float("nan"), float("inf"), -float("inf"))
    for index, bad, at in itertools.product(filled, bads, (0, -1)):
        grads = _gradients(params)
        poisoned = grads[index]
        assert poisoned is not None
        poisoned[(at,) * poisoned.ndim] = bad
        try:
            out, _ = transform.update(grads, transform.init(params))
        except ArithmeticError:
            continue
        nothing = all(isinstance(t, Identity | Chain) for t in walk(transform))
        passed = nothing and _same(out, grads)
        _require(passed, transform, "non_finite_is_refused", f"{bad} was accepted")


def randomness_is_fresh(transform: GradTransform, params: NamedParameters) -> None:
    """No seed is a default or shared, streams move on, and a seed reproduces them."""
    state = transform.init(params)
    found = sum(t.dtype == torch.uint8 and t.numel() == STATE_BYTES for t in _tensors([state]))
    seen = f"a generator's state is held elsewhere than under the key {RNG_KEY!r}"
    _require(found == len([*_streams(state)]), transform, "randomness_is_fresh", seen)
    if not has_randomness(state):
        return
    streams = [*_streams(state), *_streams(transform.init(params))]
    _require(_distinct(streams), transform, "randomness_is_fresh", "two streams are equal")
    seeded = reseeded(state, 5)
    _require(_distinct([*_streams(seeded)]), transform, "randomness_is_fresh", "seeded streams")
    _require(_same(seeded, reseeded(state, 5)), transform, "randomness_is_fresh", "reseeding")
    _, later = transform.update(_gradients(params), state)
    for old, new in zip(_streams(state), _streams(later), strict=True):
        _require(not _same(old, new), transform, "randomness_is_fresh", "a stream stood still")


def values_back_from_text(transform: GradTransform, params: NamedParameters) -> None:
    """repr evaluates to an equal transform; so do pickle, deepcopy and the plain form."""
    names = {**vars(gradguard), type(transform).__name__: type(transform), "inf": float("inf")}
    try:
        copies: list[Any] = [eval(repr(transform), names), copy.deepcopy(transform)]
        copies.append(pickle.loads(pickle.dumps(transform)))
    except Exception as error:  # whatever a repr or pickle may raise breaks the law
        _require(False, transform, "values_back_from_text", repr(error))
        return
    if type(transform).__name__ in TRANSFORMS:
        copies.append(transform_from_plain(transform_to_plain(transform)))
    for other in copies:
        _require(other == transform, transform, "values_back_from_text", other)


LAWS: tuple[Law, ...] = (
    presence,
    shape_dtype_device_layout,
    purity,
    state_is_plain,
    state_structure_is_stable,
    state_grows,
    finite_in_finite_out,
    dropped_coordinates_have_no_sign,
    non_finite_is_refused,
    randomness_is_fresh,
    values_back_from_text,
)


def _gradients(params: NamedParameters) -> Grads:
    return [p.detach().clone() for p in params]  # clone keeps the memory layout


def _form(tensor: Tensor) -> tuple[object, ...]:
    return tuple(tensor.shape), tensor.dtype, tensor.device, tensor.stride()


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(_bits(a), _bits(b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)  # NaN equals itself bit by bit


def _list_lengths(state: Any) -> Iterator[int]:
    for value in state.values() if isinstance(state, dict) else ():
        if isinstance(value, list):
            yield len(value)
        yield from _list_lengths(value)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list):
        for held in value.values() if isinstance(value, dict) else value:
            yield from _tensors(held)


def _streams(state: State) -> Iterator[Tensor]:
    for key, value in state.items():
        if key == RNG_KEY:
            yield value
        elif isinstance(value, dict):
            yield from _streams(value)


def _distinct(streams: list[Tensor]) -> bool:
    return len({bytes(s.numpy()) for s in streams}) == len(streams)


def _require(holds: bool, transform: GradTransform, law: str, seen: object) -> None:
    if not holds:
        raise LawBrokenError(f"{law} does not hold for {transform!r}: {seen}")
