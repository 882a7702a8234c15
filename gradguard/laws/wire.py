"""What a transform sends is what a receiver decodes."""

from __future__ import annotations

from torch import Tensor

from gradguard.core import Grads, GradTransform
from gradguard.laws.checks import gradients, require, same
from gradguard.transforms.routing import NamedParameters
from gradguard.wire.decoder import decode
from gradguard.wire.encoder import encode
from gradguard.wire.sending import encode_stated

_SCALES = (1.0, 0.0, 1e-30)


def wire_is_lossless(transform: GradTransform, params: NamedParameters) -> None:
    """A message decodes to itself bit by bit, with and without what the state tells of it."""
    state = transform.init(params)
    for scale in _SCALES:
        grads: Grads = [None if g is None else g * scale for g in gradients(params)]
        out, state = transform.update(grads, state)
        message = {n: g for n, g in zip(params.names, out, strict=True) if g is not None}
        ways = {
            "encode": encode(message),
            "encode, portable": encode(message, portable=True),
            "encode_stated": encode_stated(message, state, names=params.names),
        }
        for way, data in ways.items():
            seen = f"{way} changed the message"
            require(_equal(decode(data), message), transform, "wire_is_lossless", seen)


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    forms = [[(t.shape, t.dtype) for t in message.values()] for message in (one, other)]
    return forms[0] == forms[1] and same(one, other)
