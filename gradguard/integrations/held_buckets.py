"""The buckets of one backward pass of DistributedDataParallel, held until they are the gradient.

DDP hands over the gradient in buckets, and a transform needs the whole of it: a top-k or a norm of
each bucket is another one than that of the message. Buckets change after the first pass as well,
so gradients are told apart by the parameter they belong to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from gradguard.core import Grads


@dataclass
class HeldBuckets:
    """What DDP handed over since the pass began, and the futures that it waits for."""

    buffers: list[Tensor] = field(default_factory=list)
    views: dict[int, Tensor] = field(default_factory=dict)  # by the parameter's identity
    params: list[Tensor] = field(default_factory=list)
    problem: str | None = None
    _futures: list[Future[Tensor]] = field(default_factory=list)

    def hold(self, bucket: dist.GradBucket) -> Future[Tensor]:  # type: ignore[name-defined]
        """Keep the bucket; the future is done with its buffer, or fails with ``problem``."""
        buffer = bucket.buffer()
        if buffer.layout != torch.strided:
            raise TypeError(
                "DDP handed over a sparse gradient, which no transform can read; build the "
                "embedding with sparse=False"
            )
        for param, flat in zip(bucket.parameters(), bucket.gradients(), strict=True):
            self.views[id(param)] = in_layout_of(param, buffer, offset=flat.storage_offset())
            self.params.append(param)
        # A future for tensors of another device than the CPU has to be told so.
        devices = [] if buffer.device.type == "cpu" else [buffer.device]
        future: Future[Tensor] = Future(devices=devices)
        self.buffers.append(buffer)
        self._futures.append(future)
        # Through then(): an error that is raised in there reaches DDP when it waits, and leaves
        # it ready for the next pass. Raised by the hook itself, it would not.
        return future.then(self._delivered)

    def gradients(self, params: Sequence[Tensor]) -> Grads:
        """The gradients of ``params``, in their own layout and in the buckets' memory.

        DDP fills in zeros for a parameter that took no part in the pass. It has no gradient, and
        a transform is to know that: error feedback keeps its memory for it.
        """
        found, known = set(self.views), {id(p) for p in params}
        if found != known or len(self.params) != len(params):
            raise RuntimeError(
                f"DDP handed over gradients of {len(self.params)} parameters, of which "
                f"{len(found & known)} are among the {len(params)} that the hook knows; give "
                "comm_hook() the model that this DDP wraps, and make parameters trainable or "
                "frozen before that"
            )
        return [None if p.grad is None else self.views[id(p)] for p in params]

    def write(self, params: Sequence[Tensor], grads: Grads) -> None:
        """Put ``grads`` into the buckets; a missing one is zero."""
        for param, grad in zip(params, grads, strict=True):
            view = self.views[id(param)]
            view.zero_() if grad is None else view.copy_(grad)

    def discard(self) -> None:
        """Remove every gradient, here and from the parameters: a step after it changes nothing."""
        self.fill(0.0)
        for param in self.params:
            param.grad = None

    def fill(self, value: float) -> None:
        """Set every gradient of every bucket."""
        for buffer in self.buffers:
            buffer.fill_(value)

    def multiply(self, factor: float) -> None:
        """Scale every gradient of every bucket."""
        for buffer in self.buffers if factor != 1 else ():
            buffer.mul_(factor)

    def deliver(self) -> None:
        """Complete all futures, in the order of the buckets."""
        for future, buffer in zip(self._futures, self.buffers, strict=True):
            future.set_result(buffer)

    def _delivered(self, future: Future[Tensor]) -> Tensor:
        if self.problem is not None:
            raise RuntimeError(self.problem)
        return future.value()


def in_layout_of(param: Tensor, buffer: Tensor, *, offset: int) -> Tensor:
    """The gradient of ``param`` as it lies in a flat ``buffer`` from ``offset`` on.

    DDP lays a gradient out like its parameter where that is dense, channels-last for example.
    ``GradBucket.gradients()`` shows it row by row all the same, with its elements shuffled.

    >>> kernel = torch.empty(1, 2, 1, 2).to(memory_format=torch.channels_last)
    >>> in_layout_of(kernel, torch.arange(6.0), offset=2)
    tensor([[[[2., 4.]],
    <BLANKLINE>
             [[3., 5.]]]])
    """
    dense = torch.empty_like(param, device="meta").stride() == param.stride()
    if dense:
        return buffer.as_strided(param.shape, param.stride(), offset)
    return buffer[offset : offset + param.numel()].view(param.shape)
