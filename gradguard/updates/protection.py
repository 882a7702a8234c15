"""One round of federated averaging: the model before, the model after, and what is sent.

H. Brendan McMahan, Eider Moore, Daniel Ramage, Seth Hampson and Blaise Agüera y Arcas,
"Communication-Efficient Learning of Deep Networks from Decentralized Data", 2016,
arXiv:1602.05629.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gradguard.aliasing import separated
from gradguard.checkpoint import check_structure, labelled
from gradguard.core import Grads, GradTransform, State
from gradguard.finite import NonFiniteGradientError, is_finite
from gradguard.updates.errors import NonFiniteUpdateError, UpdateError
from gradguard.updates.layout import Entries, UpdateLayout, layout_of_entries

Buffers = Literal["withhold", "send"]

CHOOSE = (
    "their averages of the client's own data were changed by training, and no transform covers "
    "them; say buffers='withhold' to send no change of them (the server's stay as they are: use "
    "GroupNorm, or let it measure them on its own data), or buffers='send' to send them undefended"
)


@torch.no_grad()
def protect(
    before: Entries,
    after: Entries,
    transform: GradTransform,
    state: State | None = None,
    *,
    layout: UpdateLayout | None = None,
    buffers: Buffers | None = None,
) -> tuple[dict[str, Tensor], State]:
    """The change of a model as one defended message, and the state for the next round.

    The update is *after minus before*, for every name of the model, in its order:

    - **parameters** are transformed together, as one message: a norm or a top-k is over all of
      them and over nothing else, and a 0-d parameter is one like others;
    - **a parameter under several names** (tied weights) counts once; its update is the same under
      each;
    - **statistics and other floating-point buffers** send zeros, or with ``buffers="send"`` their
      change as it is; there is no default once training has changed one;
    - **integer and boolean buffers** send zeros, or with ``buffers="send"`` their change (booleans
      their new value);
    - **frozen parameters** send zeros.

    An update of half-precision entries has float32: the difference of two such numbers needs more
    digits than they have. All others keep their dtype. :func:`apply_update` gives the model back.

    Guarantees:

    - neither model nor ``state`` is modified, and no result shares memory with them;
    - NaN or infinity in either model raises before the transform has drawn anything;
    - with ``Identity()`` and ``buffers="send"`` :func:`apply_update` gives ``after``, up to the
      rounding of one subtraction and one addition;
    - the state is complete: the same models and state give the same message.

    Not guaranteed: anything about what is sent undefended by ``buffers="send"``, about losses and
    numbers of examples that go out beside the update, or about a float buffer that a layout made
    without the model takes for a parameter.

    Args:
        before: What the server sent.
        after: The same model after local training.
        transform: The defence.
        state: What the round before returned; ``None`` in the first.
        layout: From :func:`gradguard.updates.layout.layout_of_model`; without it, names and
            dtypes of ``after`` decide.
        buffers: See above.

    Raises:
        UpdateError: The models do not fit each other or the layout; a frozen parameter has
            changed; tied entries differ; ``buffers`` is needed.
        NonFiniteUpdateError: An entry is NaN or infinite.
        ValueError: ``state`` is another transform's.

    >>> from gradguard import KeepTopK
    >>> before, after = {"w": torch.zeros(4)}, {"w": torch.tensor([1.0, -3.0, 2.0, 0.0])}
    >>> update, state = protect(before, after, KeepTopK(0.25))
    >>> update
    {'w': tensor([ 0., -3.,  0.,  0.])}
    """
    if buffers not in (None, "withhold", "send"):
        raise ValueError(f"buffers must be 'withhold' or 'send', got {buffers!r}")
    layout = layout_of_entries(after) if layout is None else layout
    _check_models(before, after, layout)
    _check_buffers(before, after, layout, buffers)
    params = layout.named_parameters(before)
    state = _state(transform, params, state)
    changes: Grads = [_difference(before[name], after[name]) for name in layout.parameters]
    for index, (name, change) in enumerate(zip(layout.parameters, changes, strict=True)):
        # Here, for not every transform looks: the difference of finite numbers may overflow.
        if change is not None and not is_finite(change):
            raise NonFiniteUpdateError(index, name=name, what="contains NaN or infinity")
    try:
        sent, new = transform.update(changes, state)
    except NonFiniteGradientError as error:
        name = layout.parameters[error.index]
        raise NonFiniteUpdateError(error.index, name=name, what=error.what) from error
    sent, new = separated(sent, new)
    return _message(before, after, layout, sent, send=buffers == "send"), new


@torch.no_grad()
def apply_update(before: Entries, update: Entries) -> dict[str, Tensor]:
    """The model after a round: ``before`` plus ``update``, in the dtypes of ``before``.

    Raises:
        UpdateError: Names or shapes differ.

    >>> apply_update({"w": torch.ones(2)}, {"w": torch.tensor([0.5, 0.0])})
    {'w': tensor([1.5000, 1.0000])}
    """
    _check_names(before, update, "the update")
    for name, old in before.items():
        if old.shape != update[name].shape:
            raise UpdateError(
                f"{name!r} has shape {tuple(update[name].shape)} in the update and "
                f"{tuple(old.shape)} in the model; give the model that the update was made from"
            )
    return {
        name: (old ^ update[name] if old.dtype == torch.bool else old + update[name]).to(old.dtype)
        for name, old in before.items()
    }


def _state(transform: GradTransform, params: object, state: State | None) -> State:
    fresh: State = transform.init(params)  # type: ignore[arg-type]
    if state is None:
        return fresh
    check_structure(labelled(transform, state), labelled(transform, fresh))
    return state


def _difference(old: Tensor, new: Tensor) -> Tensor:
    wide = torch.promote_types(old.dtype, torch.float32)
    return new.detach().to(wide) - old.detach().to(wide)


def _message(
    before: Entries, after: Entries, layout: UpdateLayout, sent: Grads, *, send: bool
) -> dict[str, Tensor]:
    known = dict(zip(layout.parameters, sent, strict=True))
    tied, unsent = dict(layout.ties), {*layout.buffers, *layout.counters, *layout.frozen}
    message = {}
    for name in after:
        first = tied.get(name, name)
        change = known.get(first)
        if first in unsent and send:
            change = _change(before[first], after[first])
        if change is None:  # of a withheld entry, or of a parameter that the transform left out
            change = torch.zeros_like(_change(before[first], before[first]))
        message[name] = change.clone() if name in tied else change
    return message


def _change(old: Tensor, new: Tensor) -> Tensor:
    if old.dtype == torch.bool:
        return new.detach() ^ old.detach()
    return _difference(old, new) if old.is_floating_point() else new.detach() - old.detach()


def _check_models(before: Entries, after: Entries, layout: UpdateLayout) -> None:
    _check_names(before, after, "the model after training")
    if set(after) != layout.names:
        odd = sorted(set(after) ^ layout.names)
        raise UpdateError(f"the layout and the models disagree about {odd[0]!r}; make it anew")
    for index, (name, new) in enumerate(after.items()):
        old = before[name]
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            raise UpdateError(
                f"{name!r} was {old.dtype} of shape {tuple(old.shape)} before training and is "
                f"{new.dtype} of shape {tuple(new.shape)} after it; expected one and the same model"
            )
        if new.is_complex():
            raise UpdateError(f"{name!r} is complex; expected real numbers")
        for which, tensor in (("before", old), ("after", new)):
            if tensor.is_floating_point() and not is_finite(tensor.detach()):
                what = f"contains NaN or infinity {which} training"
                raise NonFiniteUpdateError(index, name=name, what=what)
    for name, first in layout.ties:
        for model in (before, after):
            if not torch.equal(model[name], model[first]):
                raise UpdateError(
                    f"{name!r} and {first!r} are one tensor of the model and differ here; send "
                    "both from one model"
                )


def _check_names(before: Entries, after: Entries, what: str) -> None:
    if odd := sorted(set(before) ^ set(after)):
        where = "missing from" if odd[0] in before else "only in"
        raise UpdateError(
            f"{odd[0]!r} is {where} {what}; expected the same {len(before)} names as before "
            "training (a wrapper such as DataParallel adds a prefix: send the model inside it)"
        )


def _check_buffers(
    before: Entries, after: Entries, layout: UpdateLayout, buffers: Buffers | None
) -> None:
    for name in layout.frozen:
        if not torch.equal(before[name], after[name]):
            raise UpdateError(f"{name!r} does not require a gradient and has changed all the same")
    changed = [name for name in layout.buffers if not torch.equal(before[name], after[name])]
    if changed and buffers is None:
        raise UpdateError(f"{changed[0]!r} and {len(changed) - 1} other buffers: {CHOOSE}")
