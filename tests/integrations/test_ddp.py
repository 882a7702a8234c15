from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from gradguard import (
    AddGaussian,
    Chain,
    ClipByGlobalNorm,
    ClipByValue,
    ErrorFeedback,
    Grads,
    GradTransform,
    Identity,
    KeepRandomK,
    KeepTopK,
    LowRank,
    NamedParameters,
    Only,
    Quantize,
    Sign,
    State,
    Withhold,
    chain,
)
from gradguard.integrations.ddp import CommHook, Exchange, comm_hook
from gradguard.integrations.held_buckets import in_layout_of
from gradguard.integrations.rank_message import trained
from gradguard.randomness import reseeded
from tests.integrations import two_ranks
from tests.integrations.two_ranks import flat, loss_of

TRANSFORMS: dict[str, GradTransform] = {
    "identity": Identity(),
    "top-k": ErrorFeedback(KeepTopK(0.05)),
    "clip": ClipByGlobalNorm(0.1),
    "noise": chain(ClipByGlobalNorm(1.0), AddGaussian(0.01), Quantize(4)),
    "low rank": ErrorFeedback(LowRank(2)),
    "by name": chain(Only("5.*", Sign()), Withhold("0.bias")),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "one bucket": {},
    "many buckets": {"bucket_cap_mb": 0.005},
    "views": {"bucket_cap_mb": 0.005, "gradient_as_bucket_view": True},
    "static": {"bucket_cap_mb": 0.005, "static_graph": True},
    "unused": {"bucket_cap_mb": 0.005, "find_unused_parameters": True},
    "wire": {"bucket_cap_mb": 0.005, "exchange": "wire"},
}
STEPS = 5
_DENSE = 4 * sum(p.numel() for p in two_ranks.model().parameters())  # bytes


def _wrapped(**options: Any) -> DistributedDataParallel:
    return DistributedDataParallel(two_ranks.model(), **options)


def _hooked(
    transform: GradTransform,
    *,
    seed: int | None = 3,
    exchange: Exchange = "dense",
    **options: Any,
) -> tuple[DistributedDataParallel, CommHook]:
    ddp = _wrapped(**options)
    hook = comm_hook(transform, model=ddp, exchange=exchange)
    if seed is not None:
        hook.reseed(seed)
    ddp.register_comm_hook(None, hook)
    return ddp, hook


def _train(net: nn.Module, rank: int, steps: range, *, lr: float = 0.1) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.5)
    for step in steps:
        optimizer.zero_grad()
        loss_of(net, rank, step).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _simulated(transform: GradTransform, *, ranks: int = 2) -> tuple[Tensor, list[State]]:
    """The same training in one process, with the pure transform and without DDP."""
    net = two_ranks.model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.5)
    params = trained(net)
    states = [
        reseeded({f"rank {rank}": transform.init(params)}, 3)[f"rank {rank}"]
        for rank in range(ranks)
    ]
    for step in range(STEPS):
        total = [torch.zeros_like(p) for p in params]
        for rank in range(ranks):
            net.zero_grad()
            loss_of(net, rank, step).backward()  # type: ignore[no-untyped-call]
            sent, states[rank] = transform.update([p.grad for p in params], states[rank])
            for t, s in zip(total, sent, strict=True):
                assert s is not None
                t += s / ranks
        for p, t in zip(params, total, strict=True):
            p.grad = t
        optimizer.step()
    return flat(net.parameters()), states


def training(rank: int) -> dict[str, Any]:
    results = {}
    for name, transform in TRANSFORMS.items():
        for setting, options in OPTIONS.items():
            ddp, hook = _hooked(transform, **options)
            _train(ddp, rank, range(STEPS))
            state = hook.state_dict()["transform"]
            results[f"{name}, {setting}"] = {"params": flat(ddp.parameters()), "state": state}
    plain = _wrapped()
    plain.register_comm_hook(dist.group.WORLD, allreduce_hook)
    _train(plain, rank, range(STEPS))
    results["torch"] = {"params": flat(plain.parameters()), "state": {}}
    bare = _wrapped(bucket_cap_mb=0.005)
    _train(bare, rank, range(STEPS))
    results["no hook"] = {"params": flat(bare.parameters()), "state": {}}
    return results


@pytest.mark.slow
def test_training_is_that_of_two_clients_and_a_server_in_one_process(tmp_path: Path) -> None:
    first, second = two_ranks.run(training, tmp_path)
    for name, transform in TRANSFORMS.items():
        params, states = _simulated(transform)
        for setting in OPTIONS:
            key = f"{name}, {setting}"
            assert torch.equal(first[key]["params"], second[key]["params"]), key
            assert torch.equal(first[key]["params"], params), key
            for rank, found in enumerate((first, second)):
                state = found[key]["state"]
                state = state if isinstance(transform, Chain) else next(iter(state.values()))
                assert _same(state, states[rank]), key
    for name in ("torch", "no hook"):
        assert torch.equal(first["identity, one bucket"]["params"], first[name]["params"])
    # Were the residuals the same, both would have seen one and the same gradient.
    memories = [found["top-k, many buckets"]["state"] for found in (first, second)]
    assert not _same(*memories)
    assert len({float(first[f"{name}, one bucket"]["params"].norm()) for name in TRANSFORMS}) == 6


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for item in value for t in _tensors(item)] if isinstance(value, list) else []


def _same(one: Any, other: Any) -> bool:
    pairs = zip(_tensors(one), _tensors(other), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


class _FailsOn:
    """A transform whose rank 1 fails in its third step; not frozen, for it counts."""

    def __init__(self, rank: int) -> None:
        self.rank, self.steps = rank, 0

    def init(self, params: Any) -> State:
        return {}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        self.steps += 1
        if self.rank == 1 and self.steps == 3:
            raise KeyError("lost something")
        return grads, state

    def __repr__(self) -> str:
        return "FailsOn()"


def _train_through(
    ddp: DistributedDataParallel, hook: CommHook, rank: int, *, bad: int = -1
) -> dict[str, Any]:
    """Train, count what is refused, and go on without that batch."""
    told, left, kept = [], 0, True
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    for step in range(STEPS):
        optimizer.zero_grad(set_to_none=False)  # so that DDP has raw gradients to leave behind
        inputs, labels = two_ranks.batch(rank, step)
        if step == bad and rank == 1:
            inputs[0, 0, 0, 0] = float("nan")
        before = hook.state_dict()["transform"]
        try:
            nn.functional.cross_entropy(ddp(inputs), labels).backward()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            told.append(str(error))
            left += sum(p.grad is not None for p in ddp.parameters())
            kept = _same(before, hook.state_dict()["transform"])
        optimizer.step()
    return {"told": told, "left": left, "kept": kept, "params": flat(ddp.parameters())}


def failures(rank: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    noisy = chain(ErrorFeedback(KeepTopK(0.1)), AddGaussian(0.01))
    for setting, options in OPTIONS.items():
        ddp, hook = _hooked(noisy, **options)
        results[setting] = _train_through(ddp, hook, rank, bad=2)
    ddp, hook = _hooked(noisy)
    skipping = torch.optim.SGD(ddp.parameters(), lr=0.1)
    for step in (0, 1, 3, 4):
        skipping.zero_grad()
        loss_of(ddp, rank, step).backward()  # type: ignore[no-untyped-call]
        skipping.step()
    results["without the batch"] = {"params": flat(ddp.parameters())}
    ddp, hook = _hooked(Identity())
    results["identity"] = _train_through(ddp, hook, rank, bad=0)
    ddp, hook = _hooked(_FailsOn(rank))
    results["raises"] = _train_through(ddp, hook, rank)
    ddp, hook = _hooked(KeepTopK(0.1 if rank else 0.2))
    results["differs"] = _train_through(ddp, hook, rank)
    ddp, hook = _hooked(AddGaussian(1.0))
    hook._state = reseeded(hook._state, 5)  # as after a fork, or from one rank's checkpoint
    results["shared"] = _train_through(ddp, hook, rank)
    return results


@pytest.mark.slow
def test_what_goes_wrong_on_one_rank_is_raised_on_all_and_nothing_is_averaged(
    tmp_path: Path,
) -> None:
    both = two_ranks.run(failures, tmp_path)
    for rank, found in enumerate(both):
        for setting in (*OPTIONS, "identity"):
            seen = found[setting]
            assert len(seen["told"]) == 1, setting
            assert "rank 1 of 2 saw NaN or infinity in its gradient" in seen["told"][0]
            assert ("NonFiniteGradientError" in seen["told"][0]) is (rank == 1)
            assert (seen["left"], seen["kept"]) == (0, True), setting
            assert bool(torch.isfinite(seen["params"]).all())
            assert torch.equal(seen["params"], both[0][setting]["params"])
        for setting in OPTIONS:
            assert torch.equal(found[setting]["params"], found["without the batch"]["params"])
        assert "the gradient of parameter 0 ('0.weight')" in both[1]["one bucket"]["told"][0]
        assert [("rank 1 of 2 failed" in t) for t in found["raises"]["told"]] == [True]
        assert ("KeyError: 'lost something'" in found["raises"]["told"][0]) is (rank == 1)
        for setting, words in (
            ("differs", "the 2 ranks disagree about the transform"),
            ("shared", "ranks 0, 1 of 2 have the same random streams"),
        ):
            assert len(found[setting]["told"]) == STEPS
            assert all(words in told for told in found[setting]["told"])
            assert torch.equal(found[setting]["params"], flat(two_ranks.model().parameters()))


def resuming(rank: int) -> dict[str, Any]:
    transform = chain(ErrorFeedback(KeepTopK(0.1)), AddGaussian(0.01))
    ddp, hook = _hooked(transform)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    for step in range(STEPS):
        if step == 2:
            saved = copy.deepcopy((ddp.module.state_dict(), hook.state_dict()))
        optimizer.zero_grad()
        loss_of(ddp, rank, step).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    again, other = _hooked(transform, seed=None)
    again.module.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    optimizer = torch.optim.SGD(again.parameters(), lr=0.1)
    for step in range(2, STEPS):
        optimizer.zero_grad()
        loss_of(again, rank, step).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    refused = []
    for wrong in (
        {**saved[1], "rank": 1 - rank},
        {**saved[1], "ranks": 3},
        {**saved[1], "transform": {"0:Sign": {}}},
        {},
    ):
        try:
            other.load_state_dict(wrong)
        except ValueError as error:
            refused.append(str(error))
    other.reset()
    fresh = [float(m.abs().sum()) for m in _tensors(other.state_dict()["transform"])[:6]]
    return {
        "straight": flat(ddp.parameters()), "resumed": flat(again.parameters()),
        "state": flat(_tensors(saved[1])), "refused": refused, "fresh": fresh,
    }  # fmt: skip


@pytest.mark.slow
def test_a_checkpoint_resumes_bitwise_and_only_on_its_own_rank(tmp_path: Path) -> None:
    first, second = two_ranks.run(resuming, tmp_path)
    for found in (first, second):
        assert torch.equal(found["straight"], found["resumed"])
        assert len(found["refused"]) == 4
        assert found["fresh"] == [0.0] * 6
    assert "expected the state of rank 0 of 2, got that of rank 1 of 2" in first["refused"][0]
    assert "belongs to another defence" in first["refused"][2]
    assert not torch.equal(first["state"], second["state"])


class _Forked(nn.Module):
    """Half of it takes part in a pass only if it is asked to."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.always, self.sometimes = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, inputs: Tensor, both: bool) -> Tensor:
        out: Tensor = self.always(inputs)
        return out + self.sometimes(inputs) if both else out


def _step(ddp: DistributedDataParallel, value: float, both: bool, *, keep: bool = False) -> None:
    if not keep:
        ddp.zero_grad()
    ddp(torch.full((1, 3), value), both).sum().backward()


def special_passes(rank: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for setting, view in (("copies", False), ("views", True)):
        ddp = DistributedDataParallel(
            _Forked(), find_unused_parameters=True, gradient_as_bucket_view=view
        )
        hook = comm_hook(ErrorFeedback(KeepTopK(0.5, scope="tensor")), model=ddp)
        ddp.register_comm_hook(None, hook)
        used = ddp.module.sometimes.weight
        _step(ddp, 1.0 + rank, True)
        before = flat(hook._state["memory"][2:])
        _step(ddp, 1.0 + rank, False)  # unused on both ranks
        nowhere = used.grad is None
        after = flat(hook._state["memory"][2:])
        _step(ddp, 1.0 + rank, rank == 0)  # used on one
        results[setting] = {
            "memory kept": torch.equal(before, after), "nowhere": nowhere,
            "some": used.grad is not None, "grad": flat([used.grad]), "before": before,
        }  # fmt: skip
    ddp = DistributedDataParallel(_Forked(), find_unused_parameters=True)
    ddp.register_comm_hook(None, comm_hook(ClipByGlobalNorm(1.0), model=ddp))
    with ddp.no_sync():
        _step(ddp, 1.0 + rank, True)
    _step(ddp, 5.0, True, keep=True)
    results["accumulated"] = flat(p.grad for p in ddp.parameters())
    ddp = DistributedDataParallel(_Forked(), find_unused_parameters=True)
    ddp.register_comm_hook(None, comm_hook(ClipByGlobalNorm(1.0)))  # without a model
    _step(ddp, 1.0 + rank, True)
    results["unnamed"] = flat(p.grad for p in ddp.parameters())
    _step(ddp, 1.0 + rank, True)
    results["unnamed again"] = flat(p.grad for p in ddp.parameters())
    ddp = DistributedDataParallel(_Forked(), find_unused_parameters=True)
    ddp.register_comm_hook(None, comm_hook(ClipByGlobalNorm(1.0), exchange="wire"))
    _step(ddp, 1.0 + rank, rank == 0)
    results["one message shorter"] = flat(p.grad for p in ddp.parameters())
    for transform in (KeepRandomK(0.1), LowRank(2)):
        ddp, hook = _hooked(transform, exchange="wire")
        loss_of(ddp, rank, 0).backward()  # type: ignore[no-untyped-call]
        results[f"bytes of {type(transform).__name__}"] = hook.message_bytes
    ddp, _ = _hooked(ErrorFeedback(KeepTopK(0.1)), bucket_cap_mb=0.005)
    with ddp.join():  # rank 1 has two more batches
        _train(ddp, rank, range(2 + 2 * rank))
    results["joined"] = flat(ddp.parameters())
    wrong: list[Any] = ["group", dist.new_group([0, 1])]
    results["states"] = []
    for state in wrong:
        ddp = DistributedDataParallel(_Forked())
        ddp.register_comm_hook(state, comm_hook(Identity(), model=ddp))
        try:
            _step(ddp, 1.0, True)
        except (TypeError, ValueError) as error:
            results["states"].append(str(error))
    ddp = DistributedDataParallel(_Forked())
    hook = comm_hook(Identity(), model=two_ranks.model())
    ddp.register_comm_hook(None, hook)
    try:
        _step(ddp, 1.0, True)
    except RuntimeError as error:
        results["wrong model"] = str(error)
    return results


@pytest.mark.slow
def test_unused_parameters_accumulation_and_hooks_without_a_model(tmp_path: Path) -> None:
    both = two_ranks.run(special_passes, tmp_path)
    for rank, found in enumerate(both):
        for setting in ("copies", "views"):
            seen = found[setting]
            assert seen["memory kept"], setting
            assert seen["nowhere"]
            assert seen["some"]
            assert torch.equal(seen["grad"], both[0][setting]["grad"])
        local = [torch.full((8,), 6.0 + r) for r in range(2)]  # weights, twice two rows
        biases = torch.full((2,), 2.0)
        whole = [torch.cat([v[:6], biases, v[:6], biases]) for v in local]
        mean = sum((g / g.norm() for g in whole), torch.zeros(16)) / 2
        torch.testing.assert_close(found["accumulated"], mean)
        assert torch.equal(found["unnamed"], found["unnamed again"])
        small = [torch.full((8,), 1.0 + r) for r in range(2)]
        whole = [torch.cat([v[:6], biases / 2, v[:6], biases / 2]) for v in small]
        mean = sum((g / g.norm() for g in whole), torch.zeros(16)) / 2
        torch.testing.assert_close(found["unnamed"], mean)
        half = torch.cat([whole[0] / whole[0].norm() / 2])
        half[:8] += whole[1][:8] / whole[1][:8].norm() / 2
        torch.testing.assert_close(found["one message shorter"], half)
        assert 0 < found["bytes of KeepRandomK"] < 0.15 * _DENSE
        assert 0 < found["bytes of LowRank"] < 0.2 * _DENSE
        assert torch.equal(found["joined"], both[0]["joined"])
        assert [told[:20] for told in found["states"]] == [
            "register_comm_hook(s",
            "the process group gi",
        ]
        assert "gradients of 4 parameters, of which 0 are among the 6" in found["wrong model"], rank


def scaled(rank: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for scale in (1.0, 1024.0):
        ddp = _wrapped(bucket_cap_mb=0.005)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
        hook = comm_hook(chain(ClipByValue(0.05), AddGaussian(0.01)), model=ddp, scaler=scaler)
        hook.reseed(3)
        ddp.register_comm_hook(None, hook)
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
        for step in range(STEPS):
            optimizer.zero_grad()
            loss = loss_of(ddp, rank, step)
            if step == 2 and rank == 1:
                loss = loss * float("inf")
            before = [flat(ddp.parameters()), hook.state_dict()["transform"]]
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
            if step == 2:
                after = [flat(ddp.parameters()), hook.state_dict()["transform"]]
                results[f"skipped {scale}"] = _same(before, after)
        results[f"scale {scale}"] = scaler.get_scale()
        results[f"params {scale}"] = flat(ddp.parameters())
    return results


@pytest.mark.slow
def test_with_a_scaler_the_transform_sees_true_gradients_and_overflow_skips_the_step(
    tmp_path: Path,
) -> None:
    both = two_ranks.run(scaled, tmp_path)
    for found in both:
        for scale in (1.0, 1024.0):
            assert found[f"skipped {scale}"]
            assert found[f"scale {scale}"] == scale / 2
            assert torch.equal(found[f"params {scale}"], both[0][f"params {scale}"])
        assert torch.equal(found["params 1.0"], found["params 1024.0"])


def three(rank: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    exchanges: tuple[Exchange, ...] = ("dense", "wire")
    for exchange in exchanges:
        ddp, _ = _hooked(Identity(), exchange=exchange)
        loss_of(ddp, rank, 0).backward()  # type: ignore[no-untyped-call]
        results[exchange] = flat(p.grad for p in ddp.parameters())
    net = two_ranks.model()
    loss_of(net, rank, 0).backward()  # type: ignore[no-untyped-call]
    results["own"] = flat(p.grad for p in net.parameters())
    return results


@pytest.mark.slow
def test_three_ranks_get_one_mean_by_either_exchange(tmp_path: Path) -> None:
    found = two_ranks.run(three, tmp_path, ranks=3)
    mean = torch.stack([f["own"] for f in found]).double().mean(0).float()
    for exchange in ("dense", "wire"):
        assert all(torch.equal(f[exchange], found[0][exchange]) for f in found)
        torch.testing.assert_close(found[0][exchange], mean, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("shape", [(), (3,), (0, 2), (4, 3, 2, 2)])
def test_a_gradient_is_found_in_a_bucket_in_the_layout_of_its_parameter(
    shape: tuple[int, ...],
) -> None:
    param = torch.empty(shape)
    for laid in (param, param.to(memory_format=torch.channels_last) if len(shape) == 4 else param):
        buffer = torch.zeros(laid.numel() + 5)
        grad = torch.randn(shape)
        flat_grad = torch.empty_strided(laid.shape, laid.stride()).copy_(grad)
        buffer[5:] = flat_grad.as_strided((laid.numel(),), (1,))
        assert torch.equal(in_layout_of(laid, buffer, offset=5), grad)


def test_a_parameter_with_gaps_in_memory_has_its_gradient_row_by_row() -> None:
    param = torch.empty(4, 6)[:, ::2]
    buffer = torch.arange(14.0)
    assert torch.equal(in_layout_of(param, buffer, offset=2), buffer[2:].view(4, 3))


def test_a_transform_that_is_none_and_an_unknown_exchange_are_refused() -> None:
    with pytest.raises(TypeError, match="transform must have init and update"):
        comm_hook(Sign)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="exchange must be 'dense' or 'wire'"):
        comm_hook(Sign(), exchange="sparse")  # type: ignore[arg-type]


def test_routing_by_name_needs_the_model() -> None:
    with pytest.raises(ValueError, match="matches no parameter"):
        comm_hook(Withhold("missing.*"), model=two_ranks.model())
    names = trained(two_ranks.model())
    assert isinstance(names, NamedParameters)
    assert names.names[:2] == ("0.weight", "0.bias")


def test_parameters_that_ddp_averages_without_asking_the_hook_are_refused() -> None:
    ddp = two_ranks.model()
    ddp._delay_all_reduce_params = [ddp[0].weight]  # type: ignore[assignment]
    with pytest.raises(ValueError, match="their raw gradients would be sent"):
        comm_hook(Sign(), model=ddp)


def test_a_checkpoint_without_the_model_is_refused() -> None:
    with pytest.raises(RuntimeError, match="without its model the hook has no state"):
        comm_hook(Sign()).reseed(1)


def test_torch_accepts_the_signature_of_the_hook() -> None:
    hook = comm_hook(Sign())
    DistributedDataParallel._check_comm_hook(object(), hook)  # type: ignore[arg-type,no-untyped-call]
    assert repr(hook) == "comm_hook(Sign(), exchange='dense')"
