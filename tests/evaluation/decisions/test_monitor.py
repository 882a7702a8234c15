"""A client that measures its own leakage, and is changed by nothing in it."""

from __future__ import annotations

import copy
import io
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import prune
from torch.utils.data import DataLoader, TensorDataset

from gradguard import (
    DPSGD,
    AddGaussian,
    Defense,
    ErrorFeedback,
    GradTransform,
    GuardedOptimizer,
    KeepTopK,
    LocalTraining,
    LowRank,
    MomentumCorrection,
    Only,
    Quantize,
    WarmUp,
    chain,
    guard,
)
from gradguard.evaluation import (
    ConsoleLog,
    Leakage,
    LeakageError,
    LeakageWarning,
    Monitor,
    TensorBoardLog,
)
from gradguard.evaluation.decisions.own_state import OwnStateClient, plain_copy
from gradguard.finite import NonFiniteGradientError
from gradguard.hook_warning import without_hook_warning
from tests.evaluation.decisions.messages import AUXILIARY, BATCH, NONE, net, victims

STATEFUL = chain(ErrorFeedback(KeepTopK(0.05)), AddGaussian(0.01))


def watched(
    transform: GradTransform = STATEFUL, model: nn.Module | None = None, **changes: Any
) -> tuple[Monitor, nn.Module, GuardedOptimizer]:
    model = net() if model is None else model
    optimizer = guard(torch.optim.SGD(model.parameters(), lr=0.1), transform, model=model)
    return monitor_of(optimizer, model, **changes), model, optimizer


def monitor_of(guarded: Any, model: nn.Module, **changes: Any) -> Monitor:
    settings: dict[str, Any] = {
        "auxiliary": (AUXILIARY.images, AUXILIARY.labels),
        "batch_size": BATCH,
        "every": 3,
        "attackers": ["LLG", "TemplateRegression(head)"],
        "calibration": 10,
        "trials": 30,
        "simulated": 60,
        "log": [],
    }
    return Monitor(guarded, model=model, **(settings | changes))


def backward(model: nn.Module, start: int = 900, number: int = BATCH) -> Tensor:
    images, labels = victims(number, start)
    model.zero_grad()
    cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
    return labels


def everything(model: nn.Module, optimizer: GuardedOptimizer) -> dict[str, Any]:
    """All that a measurement must not change, as a copy."""
    return copy.deepcopy(
        {
            "state": model.state_dict(),
            "grads": [None if p.grad is None else p.grad for p in model.parameters()],
            "modes": [module.training for module in model.modules()],
            "optimizer": optimizer.state_dict(),
            "seen": optimizer._seen,
            "global": torch.get_rng_state(),
        }
    )


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def with_batch_norm() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 24),
        nn.BatchNorm1d(24),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(24, 10),
    )
    model[4].eval()  # a mode of its own
    return model


@pytest.mark.parametrize("mode", ["schedule", "own state"])
@pytest.mark.parametrize(
    "transform",
    [
        STATEFUL,
        MomentumCorrection(0.9, transform=KeepTopK(0.05)),
        chain(Only("*.weight", Quantize(4)), LowRank(1)),
    ],
)
def test_a_measurement_changes_nothing(mode: str, transform: GradTransform) -> None:
    monitor, model, optimizer = watched(transform, with_batch_norm(), mode=mode)
    backward(model)
    optimizer.step()
    labels = backward(model, 910)
    before = everything(model, optimizer)
    assert monitor.check(labels=labels) is not None
    assert same(everything(model, optimizer), before)


@pytest.mark.parametrize("mode", ["schedule", "own state"])
def test_training_with_a_monitor_is_bitwise_training_without(mode: str) -> None:
    ends = []
    for every in (None, 2):
        torch.manual_seed(0)
        monitor, model, optimizer = watched(model=with_batch_norm(), mode=mode, every=every or 1)
        optimizer.reseed(3)
        for step in range(5):
            labels = backward(model, 900 + 8 * step)
            if every is not None:
                monitor.check(labels=labels)
            optimizer.step()
        ends.append((model.state_dict(), optimizer.state_dict(), torch.rand(3)))
    assert same(ends[0], ends[1])


def test_it_measures_in_the_first_step_and_then_on_schedule() -> None:
    monitor, model, _ = watched()
    backward(model)
    assert [monitor.check() is not None for _ in range(7)] == [
        *(True, False, False), *(True, False, False), True,
    ]  # fmt: skip
    assert [one.step for one in monitor.history] == [0, 3, 6]


def test_a_leak_is_measured_through_the_guards_own_transform() -> None:
    read = watched(KeepTopK(0.05))[0].measure()
    hidden = watched(AddGaussian(100.0))[0].measure()
    assert read.attack == "TemplateRegression(head)"
    assert read.advantage_ci[0] > 0.5
    assert hidden.advantage_ci[0] < 0.1


def test_block_raises_before_anything_is_sent_and_goes_on_until_the_limit_holds() -> None:
    monitor, model, optimizer = watched(KeepTopK(0.05), action="block", max_advantage=0.3)
    backward(model)
    before = everything(model, optimizer)
    for _ in range(3):  # of which one measures
        with pytest.raises(LeakageError, match="nothing was sent") as blocked:
            monitor.check()
        assert blocked.value.leakage is monitor.history[0]
    assert len(monitor.history) == 1
    assert same(everything(model, optimizer), before)


def test_a_later_measurement_that_holds_the_limit_ends_the_block() -> None:
    monitor, _, _ = watched(AddGaussian(0.1), action="block", max_advantage=0.0)
    for _ in range(2):
        with pytest.raises(LeakageError):
            monitor.check()
    monitor.max_advantage = 0.95
    with pytest.raises(LeakageError):  # the third step does not measure
        monitor.check()
    assert [monitor.check() is None for _ in range(3)] == [False, True, True]


def test_the_limit_is_held_against_the_bad_end_of_the_interval() -> None:
    known: dict[str, Any] = {
        "step": 0, "attack": "LLG", "asr": 0.5, "ci": (0.4, 0.6), "blind_asr": 0.4,
        "advantage": 0.17, "trials": 9, "seconds": 1.0, "limit": 0.2,
    }  # fmt: skip
    assert Leakage(advantage_ci=(0.1, 0.21), **known).exceeded
    assert not Leakage(advantage_ci=(0.1, 0.2), **known).exceeded
    assert Leakage(advantage_ci=(0.1, float("nan")), **known).exceeded


def test_warn_warns_and_log_is_silent() -> None:
    monitor, _, _ = watched(KeepTopK(0.05), action="warn", max_advantage=0.1)
    with pytest.warns(LeakageWarning, match="limit 0.10"):
        monitor.check()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watched(KeepTopK(0.05), action="log", max_advantage=0.1)[0].check()


def test_on_schedule_nothing_depends_on_the_clients_data() -> None:
    """The same model after other batches of the client: residuals differ, measurements do not."""
    found: dict[str, list[Leakage]] = {"schedule": [], "own state": []}
    for mode, measured in found.items():
        for start in (900, 1300):
            monitor, model, optimizer = watched(ErrorFeedback(KeepTopK(0.002)), mode=mode)
            weights = copy.deepcopy(model.state_dict())
            for step in range(6):
                backward(model, start + 8 * step)
                optimizer.release()
            model.load_state_dict(weights)
            measured.append(monitor.measure(step=0))
    one, other = found["schedule"]
    assert (one.asr, one.ci, one.attack) == (other.asr, other.ci, other.attack)
    one, other = found["own state"]
    assert (one.asr, one.ci) != (other.asr, other.ci)


def test_the_real_batch_is_logged_and_decides_nothing() -> None:
    alone, model, _ = watched(KeepTopK(0.05), action="block", max_advantage=0.9999, trials=20)
    with_labels = watched(KeepTopK(0.05), model)[0]
    labels = backward(model)
    seen = with_labels.check(labels=labels)
    assert seen is not None
    assert seen.own_batch is not None
    assert 0.5 < seen.own_batch <= 1
    plain = alone.measure(step=0)
    assert plain.own_batch is None
    labels = backward(model, number=5)  # the last batch of an epoch
    assert with_labels.measure(labels=labels).own_batch is None


@pytest.mark.parametrize(
    "transform", [ErrorFeedback(KeepTopK(0.05)), WarmUp(KeepTopK(0.01), steps=1), LowRank(1)]
)
def test_the_own_state_client_sends_what_the_guard_will_send(transform: GradTransform) -> None:
    _, model, optimizer = watched(transform)
    for start in (900, 910, 920):
        backward(model, start)
        client = OwnStateClient(optimizer, model, loss=cross_entropy, seed=0)
        by_itself = client(*victims(start=start))
        given = client.release([p.grad for p in model.parameters()])
        sent = optimizer.release()
        assert isinstance(sent, dict)
        assert same(by_itself, sent)
        assert same(given, sent)


def test_noise_is_never_that_of_the_guard() -> None:
    _, model, optimizer = watched(AddGaussian(1.0))
    backward(model)
    client = OwnStateClient(optimizer, model, loss=cross_entropy, seed=0)
    grads = [p.grad for p in model.parameters()]
    one, two, real = client.release(grads), client.release(grads), optimizer.release()
    assert isinstance(real, dict)
    for name in real:
        assert not torch.equal(one[name], two[name])
        assert not torch.equal(one[name], real[name])


def test_parameters_in_another_order_keep_their_residuals() -> None:
    model = net()
    turned = list(reversed(list(model.parameters())))
    optimizer = guard(torch.optim.SGD(turned, lr=0.1), ErrorFeedback(KeepTopK(0.05)), model=model)
    backward(model)
    optimizer.release()
    backward(model, 910)
    client = OwnStateClient(optimizer, model, loss=cross_entropy, seed=0)
    sent, real = client(*victims(start=910)), optimizer.release()
    assert isinstance(real, dict)
    assert list(sent) == [name for name, _ in model.named_parameters()]
    assert all(torch.equal(sent[name], part) for name, part in real.items())


def test_what_the_guard_does_not_train_is_not_read() -> None:
    model = net()
    last = model.get_parameter("3.weight")
    optimizer = guard(torch.optim.SGD([last], lr=0.1), NONE.chain, model=model)
    backward(model)
    message = OwnStateClient(optimizer, model, loss=cross_entropy, seed=0)(*victims())
    assert [name for name, part in message.items() if part.any()] == ["3.weight"]
    monitor = monitor_of(optimizer, model, attackers=["BiasCount", "TemplateRegression(head)"])
    assert monitor.measure().attack != "BiasCount"  # there is no bias in the message
    first = guard(
        torch.optim.SGD(model.get_submodule("1").parameters(), lr=0.1), NONE.chain, model=model
    )
    with pytest.raises(ValueError, match="output layer"):
        monitor_of(first, model)


def test_a_private_training_and_a_defence_can_be_watched() -> None:
    from gradguard.dp import make_private

    model = net()
    data = TensorDataset(*victims(64))
    training = make_private(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        DataLoader(data, batch_size=16),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        after=KeepTopK(0.5),
    )
    monitor = monitor_of(training, training.model, every=1)
    noise = training.state_dict()["streams"]
    for images, labels in training.loader:
        training.optimizer.zero_grad()
        training.criterion(training.model(images), labels).backward()
        streams = copy.deepcopy(training.state_dict()["streams"])
        monitor.check()
        assert training.state_dict()["streams"] == streams
        training.optimizer.step()
    assert training.state_dict()["streams"] != noise
    assert training.releases == len(monitor.history) > 0
    assert monitor._defense.dp == DPSGD(noise_multiplier=1.0, max_grad_norm=1.0)
    far = monitor_of(Defense("dp", transform=[], dp=monitor._defense.dp), net())
    assert far.measure().advantage < 1
    with pytest.raises(TypeError, match="what make_private or"):
        monitor_of(training.guard, training.model)


def test_a_change_of_the_model_by_local_steps_can_be_watched() -> None:
    training = LocalTraining(epochs=3, learning_rate=0.1)
    assert watched(NONE.chain, training=training)[0].measure().advantage_ci[0] > 0.3


def test_a_blind_guess_that_is_always_right_hides_no_leak() -> None:
    """Batches of one, of data nearly all of one class: all is read, and no message is needed."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    rare = (torch.arange(1500) < 8).long()
    monitor, _, _ = watched(
        KeepTopK(0.1), model, auxiliary=(torch.rand(1500, 1, 8, 8), rare), attackers=["LLG"],
        batch_size=1, trials=20, composition="iid", action="block", max_advantage=0.2,
    )  # fmt: skip
    found = monitor.measure()
    assert (found.asr, found.blind_asr) == (1.0, 1.0)
    assert found.exceeded
    with pytest.raises(LeakageError):
        monitor.check()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"every": 0}, "every must be"),
        ({"batch_size": True}, "batch_size must be"),
        ({"trials": 19}, "at least 20"),
        ({"action": "stop"}, "action must be"),
        ({"mode": "data"}, "mode must be"),
        ({"action": "block"}, "needs max_advantage"),
        ({"max_advantage": float("nan")}, "max_advantage must be"),
        ({"max_advantage": 1.0}, "max_advantage must be"),
        ({"attackers": ["LLGG"]}, "did you mean 'LLG'"),
        ({"composition": "skew"}, "composition"),
        ({"auxiliary": (torch.zeros(10, 1, 8, 8), torch.arange(10))}, "too few"),
        ({"mode": "own state", "training": LocalTraining(epochs=1, learning_rate=1)}, "training"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        watched(**changes)


def test_own_state_is_refused_where_a_guarantee_or_no_state_is_behind() -> None:
    with pytest.raises(ValueError, match="outside of the guarantee"):
        monitor_of(NONE, net(), mode="own state")


def test_another_models_guard_is_refused() -> None:
    _, _, optimizer = watched()
    with pytest.raises(ValueError, match="not in model="):
        monitor_of(optimizer, net())


def test_names_of_another_root_are_refused() -> None:
    inner = net()
    outer = nn.Sequential(inner)
    optimizer = guard(torch.optim.SGD(outer.parameters(), lr=0.1), KeepTopK(0.1), model=outer)
    with pytest.raises(ValueError, match=r"calls a parameter '0.1.weight' that is '1.weight'"):
        monitor_of(optimizer, inner)


def test_a_copy_has_no_trainer_no_gradients_and_no_hooks_of_opacus() -> None:
    from opacus import GradSampleModule

    model = net()
    model._trainer = torch.Generator()  # type: ignore[assignment]  # which cannot be copied
    wrapped = GradSampleModule(model)
    tables = [dict(module._forward_hooks) for module in model.modules()]
    with without_hook_warning():
        backward(wrapped)
    copied = plain_copy(wrapped)
    assert all(p.grad is None for p in copied.parameters())
    assert not any(module._forward_hooks for module in copied.modules())
    assert [dict(module._forward_hooks) for module in model.modules()] == tables
    GradSampleModule(copied)  # as new


@pytest.mark.parametrize("mode", ["schedule", "own state"])
def test_no_hook_of_the_client_is_called_by_a_measurement(mode: str) -> None:
    called: list[str] = []

    def note(*_: Any, **__: Any) -> None:
        called.append("hook")

    monitor, model, optimizer = watched(mode=mode)
    part: Any  # half of these methods are untyped
    for part in (model.get_submodule("2"), model.get_submodule("3")):
        part.register_forward_hook(note, always_call=True)
        part.register_forward_pre_hook(note, with_kwargs=True)
        part.register_full_backward_hook(note)
        part.register_full_backward_pre_hook(note)
        part.register_state_dict_post_hook(note)
        part.register_state_dict_pre_hook(note)
        part.register_load_state_dict_pre_hook(note)
        part.register_load_state_dict_post_hook(note)
    for part in model.parameters():
        part.register_hook(note)
    tables = [dict(module._forward_hooks) for module in model.modules()]
    labels = backward(model)
    called.clear()
    assert monitor.check(labels=labels) is not None
    assert called == []
    assert [dict(module._forward_hooks) for module in model.modules()] == tables
    backward(model)
    assert called  # they are the client's as before
    optimizer.step()


def test_a_hook_that_makes_a_parameter_cannot_be_left_out_and_is_refused() -> None:
    model = net()
    prune.l1_unstructured(model.get_submodule("3"), "weight", amount=0.5)  # type: ignore[no-untyped-call]
    with pytest.raises(ValueError, match=r"torch.nn.utils.prune .*makes a parameter"):
        watched(model=model)


def test_a_console_line_says_what_was_measured() -> None:
    stream = io.StringIO()
    log = ConsoleLog(Console(file=stream, width=200))
    watched(KeepTopK(0.05), log=log)[0].check()
    assert re.match(r"gradguard step 0: \w+.* reads \d+ % of the labels", stream.getvalue())


def failing(_: Leakage) -> None:
    raise OSError("disk full")


def test_a_logger_that_fails_lets_nothing_be_sent_and_ends_no_block() -> None:
    monitor, _, _ = watched(KeepTopK(0.05), log=failing, action="block", max_advantage=0.1)
    with pytest.raises(OSError, match="disk full"):
        monitor.check()
    for _ in range(2):
        with pytest.raises(LeakageError):
            monitor.check()


def test_where_a_measurement_fails_the_next_call_measures_again() -> None:
    monitor, model, _ = watched(KeepTopK(0.05), action="block", max_advantage=0.1)
    labels = backward(model)
    for _ in range(2):
        with pytest.raises(ValueError, match="labels below 10"):
            monitor.check(labels=labels + 10)
    with torch.no_grad():
        kept = model.get_parameter("3.weight").clone()
        model.get_parameter("3.weight").fill_(float("nan"))
    with pytest.raises(NonFiniteGradientError):
        monitor.check()
    with torch.no_grad():
        model.get_parameter("3.weight").copy_(kept)
    assert monitor.history == []
    for _ in range(2):
        with pytest.raises(LeakageError) as blocked:
            monitor.check()
        assert blocked.value.leakage.step == 0


def test_tensorboard_gets_every_measurement(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tensorboard's own imports
        from tensorboard.backend.event_processing import (  # type: ignore[import-untyped]
            event_accumulator,
        )

        log = TensorBoardLog(tmp_path)
        monitor, model, _ = watched(log=[log])
        labels = backward(model)
        for _ in range(4):
            monitor.check(labels=labels)
        log.close()
        events = event_accumulator.EventAccumulator(str(tmp_path))
        events.Reload()
    found = events.Scalars("gradguard/advantage")
    assert [(one.step, one.value) for one in found] == [
        (one.step, pytest.approx(one.advantage)) for one in monitor.history
    ]
    assert "gradguard/labels_read_own_batch" in events.Tags()["scalars"]
