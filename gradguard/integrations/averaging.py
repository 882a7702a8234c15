"""The mean over all ranks of what each of them sends: by all-reduce, or from encoded messages."""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor

from gradguard.core import Grads
from gradguard.integrations.held_buckets import HeldBuckets


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
