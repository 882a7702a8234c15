"""The mean over all ranks of what each of them sends: by all-reduce, or from encoded messages."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from gradguard.core import Grads
from gradguard.integrations.held_buckets import HeldBuckets
from gradguard.transforms.routing import NamedParameters
from gradguard.wire import WireError, decode

_SLACK = 2**20  # bytes beyond the gradient that a decoded message may take


def average_densely(
    held: HeldBuckets, grads: Grads, params: Sequence[Tensor], *, group: dist.ProcessGroup | None
) -> None:
    """Fill the buckets with the mean of all ranks' ``grads``; each sends all of its zeros.

    Divided before it is summed, as torch's own hooks do: a sum over many ranks may overflow.
    """
    held.write(params, grads)
    for buffer in held.buffers:
        buffer.div_(dist.get_world_size(group))
        dist.all_reduce(buffer, group=group)


def average_messages(
    held: HeldBuckets,
    encoded: bytes,
    lengths: Sequence[int],
    params: Sequence[Tensor],
    *,
    group: dist.ProcessGroup | None,
) -> None:
    """Send ``encoded`` to all ranks, and fill the buckets with the mean of what all of them sent.

    Every rank decodes every message, its own as well, and adds them up in the order of ranks:
    the mean is the same to the last bit everywhere, whatever the backend.

    Args:
        held: The buckets; overwritten.
        encoded: This rank's message, under the names that :func:`names_of` gives.
        lengths: Bytes of each rank's message, in the order of ranks.
        params: All parameters of the message.
        group: The process group.

    Raises:
        WireError: A message is damaged, or not one about these parameters.
    """
    device = held.buffers[0].device
    padded = torch.zeros(max(lengths), dtype=torch.uint8)
    padded[: len(encoded)] = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
    gathered = [torch.empty_like(padded, device=device) for _ in lengths]
    dist.all_gather(gathered, padded.to(device), group=group)
    held.fill(0.0)
    limit = _SLACK + sum(buffer.nbytes for buffer in held.buffers)
    for rank, (received, length) in enumerate(zip(gathered, lengths, strict=True)):
        message = decode(received[:length].cpu().numpy().tobytes(), max_bytes=limit)
        _add(held, message, params, rank=rank, ranks=len(lengths))


def names_of(params: Sequence[Tensor]) -> tuple[str, ...]:
    """Names in a message: the parameters' own, or their positions."""
    if isinstance(params, NamedParameters):
        return params.names
    return tuple(str(index) for index in range(len(params)))


def _add(
    held: HeldBuckets,
    message: dict[str, Tensor],
    params: Sequence[Tensor],
    *,
    rank: int,
    ranks: int,
) -> None:
    expected = dict(zip(names_of(params), params, strict=True))
    for name, sent in message.items():
        param = expected.get(name)
        if param is None or (sent.shape, sent.dtype) != (param.shape, param.dtype):
            raise WireError(
                f"rank {rank} sent {name!r} of shape {tuple(sent.shape)} and {sent.dtype}, which "
                "is no gradient of this model; make every rank's model and hook alike"
            )
        held.views[id(param)] += sent.to(param.device).div_(ranks)
