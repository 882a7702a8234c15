"""torch's DistributedDataParallel: every rank is a client, and sends what a transform lets out.

Without this module DDP averages raw gradients. With it, a rank transforms its own gradient, with
its own residuals and its own noise, before anything leaves the process.
"""
# No postponed annotations here: DDP compares those of the hook with the classes themselves.

from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from gradguard.checkpoint import check_structure, cloned, moved
from gradguard.core import Chain, GradTransform, State
from gradguard.integrations.averaging import average_densely, average_messages, names_of
from gradguard.integrations.held_buckets import HeldBuckets
from gradguard.integrations.rank_message import RankMessage, reason, trained, transformed
from gradguard.integrations.rank_reports import (
    RankReport,
    exchanged,
    fingerprint,
    overflow_in,
    problem_in,
    status_of,
    stream_fingerprint,
)
from gradguard.randomness import reseeded
from gradguard.transforms.routing import NamedParameters

Exchange = Literal["dense", "wire"]


def comm_hook(
    transform: GradTransform,
    *,
    model: nn.Module | None = None,
    exchange: Exchange = "dense",
    scaler: torch.amp.GradScaler | None = None,
) -> "CommHook":
    """A communication hook for ``DistributedDataParallel.register_comm_hook``.

    Register it before the first backward pass, once on every rank::

        ddp = DistributedDataParallel(model)
        ddp.register_comm_hook(None, comm_hook(chain(ClipByGlobalNorm(1.0), Sign()), model=ddp))

    The first argument of ``register_comm_hook`` is the process group, as for torch's own hooks;
    ``None`` is that of ``model`` if it is a DDP, and otherwise the default one.

    Args:
        transform: What is done to a rank's gradient before it leaves the process.
        model: The DDP, or the model inside it: where parameter names come from. Needed by
            ``Only`` and ``Withhold``, and for checkpoints.
        exchange: ``"dense"`` is an all-reduce of the transformed gradients, zeros and all: it
            defends and saves **no bytes**. ``"wire"`` sends every rank's message to all others,
            encoded by :mod:`gradguard.wire`: bytes are saved where messages are small and ranks
            few, for each rank then receives all messages in place of one sum.
        scaler: The GradScaler of the training loop, if it has one. DDP communicates *before*
            ``scaler.unscale_``; without this argument noise would be weaker by the loss scale,
            and a clipping bound tighter.

    Raises:
        TypeError: ``transform`` is none.
        ValueError: ``exchange`` is unknown; a pattern matches no parameter; DDP was built with
            ``delay_all_reduce_named_params``, which it averages without asking a hook.

    >>> from gradguard import Withhold
    >>> comm_hook(Withhold("bias"), model=nn.Linear(2, 1))
    comm_hook(Withhold(pattern='bias'), exchange='dense')
    """
    return CommHook(transform, model=model, exchange=exchange, scaler=scaler)


class CommHook:
    """Transform this rank's whole gradient, then average over the ranks; see :func:`comm_hook`.

    What it is given is the *local* gradient of the local mean loss, not divided by the number of
    ranks. Buckets are held until the last one has come, so that a top-k or a norm is that of the
    message and not of a bucket; communication therefore no longer overlaps with the backward pass.

    Guarantees:

    - every rank gets the same average, to the last bit if the backend's all-reduce gives it so,
      as gloo's does, and always with ``exchange="wire"``; with ``Identity()`` that of DDP without
      a hook, up to the order of summation;
    - residuals and random streams are each rank's own; two ranks with one stream are refused;
    - if any rank sees NaN or infinity, or its transform raises, all ranks raise a RuntimeError
      that names it. Nothing was averaged, no state has changed, and no parameter has a gradient
      left; training may go on with the next batch;
    - with ``scaler`` the transform sees true gradients, and where any rank overflows every rank's
      scaler skips the step;
    - a parameter without gradient in the pass is ``None`` for the transform and sends zeros.

    Not guaranteed: differential privacy; ``Defense.attach`` refuses DDP with ``dp``. Other ranks
    see what this one sends with ``"wire"``; with ``"dense"`` they see the average, and with two
    ranks hence all of it. Gradients accumulated under ``no_sync`` are transformed once, summed.
    DDP itself broadcasts buffers, such as rank 0's BatchNorm statistics, as they are. Under
    ``join()`` a rank without data sends what the transform makes of zeros.
    Use a plain optimizer: one guarded with the same transform would apply it again, to the
    average, and a random transform in it would drive the ranks apart.
    """

    def __init__(
        self,
        transform: GradTransform,
        *,
        model: nn.Module | None = None,
        exchange: Exchange = "dense",
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        if isinstance(transform, type) or not isinstance(transform, GradTransform):
            raise TypeError(
                f"transform must have init and update, got {transform!r}; combine several with "
                "chain(...)"
            )
        if exchange not in get_args(Exchange):
            raise ValueError(f"exchange must be 'dense' or 'wire', got {exchange!r}")
        self.transform, self.exchange, self.scaler = transform, exchange, scaler
        self.__name__ = self.__qualname__ = "comm_hook"  # which DDP writes into its log
        self._group = model.process_group if isinstance(model, DistributedDataParallel) else None
        self._params: list[Tensor] | NamedParameters | None = None
        self._state: State = {}
        self.message_bytes = 0  # of this rank's last message, where messages are bytes
        self._held = HeldBuckets()
        if model is not None:
            self._begin(trained(model))

    def __call__(
        self,
        state: Any,
        bucket: dist.GradBucket,  # type: ignore[name-defined]
    ) -> Future[Tensor]:
        """DDP calls this for every bucket, in order; ``state`` is the process group or ``None``."""
        if bucket.index() == 0:  # an earlier pass may have broken off
            self._held = HeldBuckets()
        if bucket.index() != len(self._held.buffers):
            raise RuntimeError(
                f"bucket {bucket.index()} came after {len(self._held.buffers)} others; register "
                "the hook before the first backward pass, with one DDP only"
            )
        future = self._held.hold(bucket)
        if bucket.is_last():
            held, self._held = self._held, HeldBuckets()
            self._send(held, group=self._group_of(state))
        return future

    def state_dict(self) -> dict[str, Any]:
        """This rank's residuals and random streams, as a copy; save one from every rank."""
        rank, size = dist.get_rank(self._group), dist.get_world_size(self._group)
        self._known_params()
        return {"rank": rank, "ranks": size, "transform": cloned(self._labelled(self._state))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint of the same rank.

        Raises:
            ValueError: It is another rank's, of another number of ranks or of another transform.
                One rank's residuals would otherwise be sent by several, its noise repeated.
        """
        found = state_dict.get("rank"), state_dict.get("ranks")
        here = dist.get_rank(self._group), dist.get_world_size(self._group)
        if found != here:
            raise ValueError(
                f"expected the state of rank {here[0]} of {here[1]}, got that of rank {found[0]} "
                f"of {found[1]}; load what this rank saved, or begin anew with reset()"
            )
        expected = self._labelled(self.transform.init(self._known_params()))
        check_structure(state_dict.get("transform"), expected)
        state = moved(state_dict["transform"], expected)
        self._state = state if isinstance(self.transform, Chain) else state[self._label]

    def reset(self, seed: int | None = None) -> None:
        """Forget residuals and start new random streams, as in the first step.

        Args:
            seed: See :meth:`reseed`.
        """
        if self._params is not None:
            self._state = self.transform.init(self._params)
        if seed is not None:
            self.reseed(seed)

    def reseed(self, seed: int | None = None) -> None:
        """Start new random streams, from the operating system or, for simulation, from a seed.

        The same seed gives every rank streams of its own.
        """
        self._known_params()
        key = f"rank {dist.get_rank(self._group)}"
        self._state = reseeded({key: self._state}, seed)[key]

    def _begin(self, params: list[Tensor] | NamedParameters) -> None:
        self._params, self._state = params, self.transform.init(params)

    @torch.no_grad()
    def _send(self, held: HeldBuckets, *, group: dist.ProcessGroup | None) -> None:
        if self._params is None:
            self._begin(held.params)
        params, scale = self._known_params(), self._scale()
        try:
            message = transformed(
                self.transform,
                lambda: held.gradients(params),
                self._state,
                scale=scale or 1.0,
                names=names_of(params) if self.exchange == "wire" else None,
            )
            report = self._report(message, params, scale)
            reports = exchanged(report, group=group, device=held.buffers[0].device)
            if scale is not None and overflow_in(reports):
                held.fill(float("inf"))  # which makes the scaler of every rank skip the step
            elif problem := problem_in(reports):
                held.discard()
                why = "" if message.error is None else f". Here: {reason(message.error, params)}"
                held.problem = problem + why
            else:
                self._average(held, message, reports, group=group)
                held.multiply(scale or 1.0)
                self._state, self.message_bytes = message.state, len(message.encoded)
        except BaseException:  # such as a rank that died: no raw gradient may stay behind
            held.discard()
            raise
        held.deliver()

    def _average(
        self,
        held: HeldBuckets,
        message: RankMessage,
        reports: list[RankReport],
        *,
        group: dist.ProcessGroup | None,
    ) -> None:
        params = self._known_params()
        if self.exchange == "dense":
            average_densely(held, message.grads, params, group=group)
        else:
            lengths = [report.length for report in reports]
            average_messages(held, message.encoded, lengths, params, group=group)

    def _report(
        self, message: RankMessage, params: list[Tensor] | NamedParameters, scale: float | None
    ) -> RankReport:
        names = params.names if isinstance(params, NamedParameters) else ()
        shapes = [tuple(p.shape) for p in params]
        return RankReport(
            status=status_of(message.error),
            configuration=fingerprint(self.transform, self.exchange, scale, names, shapes),
            streams=stream_fingerprint(self._state),
            length=len(message.encoded),
        )

    def _scale(self) -> float | None:
        scaler = self.scaler
        return scaler.get_scale() if scaler is not None and scaler.is_enabled() else None

    def _group_of(self, state: Any) -> dist.ProcessGroup | None:
        if state is not None and not isinstance(state, dist.ProcessGroup):
            raise TypeError(
                "register_comm_hook(state, hook) takes a process group or None as state, got "
                f"{state!r}"
            )
        if state is not None and self._group is not None and state is not self._group:
            raise ValueError("the process group given to register_comm_hook is not the model's")
        self._group = self._group if state is None else state
        return self._group

    def _known_params(self) -> list[Tensor] | NamedParameters:
        if self._params is None:
            raise RuntimeError(
                "without its model the hook has no state before the first backward pass, and no "
                "order of parameters that a checkpoint could rely on; use comm_hook(transform, "
                "model=model)"
            )
        return self._params

    @property
    def _label(self) -> str:
        return f"0:{type(self.transform).__name__}"

    def _labelled(self, state: State) -> State:
        # As a chain of one: the states of many transforms look alike without their names.
        return state if isinstance(self.transform, Chain) else {self._label: state}

    def __repr__(self) -> str:
        return f"comm_hook({self.transform!r}, exchange={self.exchange!r})"
