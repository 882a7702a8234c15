"""The rules learned by running Opacus, R-1 to R-18: one test or more for each, by its number."""

from __future__ import annotations

import copy
import json
import math
import pickle
from typing import Any

import pytest
import torch
from opacus.utils.batch_memory_manager import BatchMemoryManager
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, WeightedRandomSampler

from gradguard import DPSGD, ErrorFeedback, KeepTopK, Quantize, chain, guard
from gradguard.dp import (
    LostAccountingError,
    PrivacyLedger,
    UnclippedGradientError,
    make_private,
)
from gradguard.dp.ledger import epsilon_of
from gradguard.evaluation.certificates.certify import certify
from gradguard.hook_warning import without_hook_warning
from gradguard.serialization import TRANSFORMS
from tests.dp.setting import Spy, backward, batch, data, epoch, flat, network, private, step
from tests.optimizer.training import differentiate

MODES = ["hooks", "ghost"]


@pytest.mark.parametrize("mode", MODES)
def test_r1_the_transform_sees_noised_gradients_once_per_logical_step(mode: str) -> None:
    spy = Spy()
    training = private(after=spy, mode=mode, noise_multiplier=100.0)
    steps = len(epoch(training))
    assert len(spy.seen) == steps == training.releases == 8
    # Clipped to 1 and divided by 8 the gradient alone is 1/8 per example; noise has 100/8 each.
    assert all(float(seen.std()) > 5 for seen in spy.seen)


@pytest.mark.parametrize("mode", MODES)
def test_r1_with_batch_memory_manager_there_is_one_release_per_logical_batch(mode: str) -> None:
    spy = Spy()
    training = private(
        after=chain(spy, ErrorFeedback(KeepTopK(0.2))), mode=mode, batch_size=32, seed=0
    )
    physical = 0
    with BatchMemoryManager(
        data_loader=training.loader, max_physical_batch_size=5, optimizer=training.optimizer
    ) as loader:
        for inputs, labels in loader:
            assert len(labels) <= 5
            step(training, inputs, labels)
            physical += 1
    assert physical > 8
    assert len(spy.seen) == training.releases == training.ledger.releases == len(training.loader)


def test_r1_split_batches_give_the_same_release_as_whole_ones() -> None:
    inputs, labels = batch(8)
    whole, split = private(seed=3), private(seed=3)
    step(whole, inputs, labels)
    for part in range(4):
        split.optimizer.signal_skip_step(do_skip=part < 3)
        rows = slice(2 * part, 2 * part + 2)
        step(split, inputs[rows], labels[rows])
    torch.testing.assert_close(flat(whole.model), flat(split.model))


def test_r2_a_guard_outside_is_refused_with_the_mend() -> None:
    training = private()
    with pytest.raises(TypeError, match=r"make_private\(optimizer=guard\(optimizer"):
        guard(training.optimizer, KeepTopK(0.1))


def test_r2_a_private_optimizer_is_not_made_private_twice() -> None:
    training = private()
    with pytest.raises(TypeError, match="plain optimizer"):
        private(model=training.model, optimizer=training.optimizer)


def test_r2_a_new_guard_inside_is_taken_as_it_is_and_a_used_one_is_refused() -> None:
    model = network()
    inner = guard(torch.optim.SGD(model.parameters(), lr=0.1), ErrorFeedback(KeepTopK(0.1)))
    assert private(model=model, optimizer=inner).guard is inner
    model = network()
    used = guard(torch.optim.SGD(model.parameters(), lr=0.1), ErrorFeedback(KeepTopK(0.1)))
    inputs, labels = batch()
    differentiate(nn.functional.cross_entropy(model(inputs), labels))
    used.step()
    with pytest.raises(ValueError, match="without noise"):
        private(model=model, optimizer=used)


def test_r2_used_momentum_is_refused() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    inputs, labels = batch()
    differentiate(nn.functional.cross_entropy(model(inputs), labels))
    optimizer.step()
    optimizer.zero_grad()
    with pytest.raises(ValueError, match="has been used"):
        private(model=model, optimizer=optimizer)


@pytest.mark.parametrize("mode", MODES)
def test_r3_a_client_that_sends_gets_the_noised_and_transformed_gradient_by_name(mode: str) -> None:
    training = private(after=KeepTopK(0.1), mode=mode)
    inputs, labels = batch()
    backward(training, inputs, labels)
    sent = training.release()
    assert sent is not None
    assert list(sent) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    kept = sum(int(g.count_nonzero()) for g in sent.values())
    assert kept == round(0.1 * sum(g.numel() for g in sent.values()))
    assert training.releases == training.ledger.releases == 1
    with pytest.raises((RuntimeError, ValueError)):
        training.optimizer.step()  # the same gradients a second time


@pytest.mark.parametrize("mode", MODES)
def test_r4_attaching_a_step_hook_does_not_lose_the_accounting(mode: str) -> None:
    training, called = private(mode=mode), list[Any]()
    training.optimizer.attach_step_hook(called.append)
    epoch(training)
    assert len(called) == training.releases == training.ledger.releases == 8


def test_r4_a_ledger_that_lost_entries_stops_the_training_and_states_no_epsilon() -> None:
    training = private()
    step(training, *batch())
    training.ledger.history = []
    with pytest.raises(LostAccountingError, match="2 releases were made"):
        step(training, *batch())
    assert all(p.grad is None for p in training.model.parameters()) or training.releases == 2
    with pytest.raises(LostAccountingError):
        training.epsilon(1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_r4_noise_drawn_by_hand_is_booked_as_well(mode: str) -> None:
    training = private(mode=mode)
    backward(training, *batch())
    private_optimizer: Any = training.optimizer
    if mode == "hooks":
        private_optimizer.clip_and_accumulate()
    else:
        private_optimizer.accumulate()
    private_optimizer.add_noise()
    assert training.ledger.releases == 1


def test_r5_no_raw_gradient_is_left_after_pre_step_skips_or_raises() -> None:
    training = private()
    backward(training, *batch())
    training.optimizer.signal_skip_step(do_skip=True)
    assert not training.optimizer.pre_step()
    assert all(p.grad is None for p in training.model.parameters())
    tight = private(max_epsilon=0.1, target_delta=1e-5, batch_size=64)
    backward(tight, *batch())
    with pytest.raises(RuntimeError):
        tight.optimizer.pre_step()
    assert all(p.grad is None for p in tight.model.parameters())


def test_r5_a_trainable_parameter_outside_the_optimizer_is_refused_by_name() -> None:
    model = network()
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"'0\.weight', '0\.bias'.*freeze"):
        private(model=model, optimizer=optimizer)


def test_r5_hooks_that_would_see_raw_gradients_are_refused_before_and_during_training() -> None:
    model = network()
    weight = next(model.parameters())
    handle = weight.register_hook(lambda g: g)  # type: ignore[no-untyped-call]
    with pytest.raises(RuntimeError, match="hook on a parameter"):
        private(model=model)
    handle.remove()
    training = private(model=model)
    weight.register_post_accumulate_grad_hook(lambda p: None)  # type: ignore[no-untyped-call]
    backward(training, *batch())
    with pytest.raises(RuntimeError, match="hook on a parameter"):
        training.optimizer.step()


def test_r6_ghost_mode_with_a_plain_loss_is_refused_before_anything_is_released() -> None:
    training = private(mode="ghost")
    before = copy.deepcopy(training.model.state_dict())
    inputs, labels = batch(scale=50.0)
    with without_hook_warning():
        differentiate(nn.functional.cross_entropy(training.model(inputs), labels))
    with pytest.raises(UnclippedGradientError, match=r"training\.criterion"):
        training.optimizer.step()
    assert training.releases == training.ledger.releases == 0
    after = training.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_r6_ghost_and_hooks_release_the_same() -> None:
    inputs, labels = batch(scale=5.0)
    hooks, ghost = private(mode="hooks", seed=1), private(mode="ghost", seed=1)
    step(hooks, inputs, labels)
    step(ghost, inputs, labels)
    torch.testing.assert_close(flat(hooks.model), flat(ghost.model), rtol=1e-4, atol=1e-6)


def test_r6_norms_of_an_earlier_batch_do_not_clip_a_later_one_in_ghost_mode() -> None:
    training = private(mode="ghost")
    step(training, *batch())
    training.model.eval()  # Opacus' hooks rest: the old norms would be taken
    with pytest.raises((RuntimeError, IndexError)):  # Opacus' own, or ours
        step(training, *batch(scale=100.0))
    assert training.releases == 1


class _Reads:
    def __init__(self, reads: str) -> None:
        self.reads = reads

    def init(self, params: Any) -> dict[str, Any]:
        return {}

    def update(self, grads: Any, state: Any) -> Any:
        return grads, state


@pytest.mark.parametrize("reads", ["raw_sum", "raw_per_sample"])
def test_r7_a_transform_that_reads_raw_gradients_is_refused_with_the_mend(reads: str) -> None:
    with pytest.raises(ValueError, match="which carries the noise"):
        private(after=_Reads(reads))
    with pytest.raises(ValueError, match="which carries the noise"):
        private(after=chain(KeepTopK(0.1), _Reads(reads)))
    with pytest.raises(ValueError, match="expected one of"):
        private(after=_Reads("everything"))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_r7_every_transform_declares_that_it_reads_its_input_only(name: str) -> None:
    assert TRANSFORMS[name].reads == "input"


def test_r7_error_feedback_of_noised_gradients_and_quantization_are_allowed() -> None:
    training = private(after=chain(ErrorFeedback(KeepTopK(0.2)), Quantize(4)))
    epoch(training)
    memory = training.guard.guard_state["0:ErrorFeedback"]["memory"]
    # Its memory is that of noise: longer than all clipped gradients together could make it.
    assert math.hypot(*(float(m.norm()) for m in memory)) > 0.1


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_r8_an_example_that_is_not_finite_counts_as_zeros_and_is_counted(value: float) -> None:
    inputs, labels = batch(8)
    poisoned = inputs.clone()
    poisoned[3, 2] = value
    rest = torch.arange(8) != 3
    with_it, without = private(seed=5), private(seed=5)
    step(with_it, poisoned, labels)
    step(without, inputs[rest], labels[rest])
    torch.testing.assert_close(flat(with_it.model), flat(without.model))
    assert bool(flat(with_it.model).isfinite().all())
    assert (with_it.nonfinite_examples, without.nonfinite_examples) == (1, 0)


def test_r8_in_a_split_batch_only_the_bad_example_is_left_out() -> None:
    inputs, labels = batch(8)
    poisoned = inputs.clone()
    poisoned[6] = math.nan
    whole, split = private(seed=5), private(seed=5)
    step(whole, poisoned, labels)
    for part in range(2):
        split.optimizer.signal_skip_step(do_skip=part < 1)
        rows = slice(4 * part, 4 * part + 4)
        step(split, poisoned[rows], labels[rows])
    torch.testing.assert_close(flat(whole.model), flat(split.model))
    assert split.nonfinite_examples == 1


def test_r8_ghost_mode_cannot_leave_it_out_and_releases_nothing() -> None:
    training = private(mode="ghost")
    inputs, labels = batch()
    inputs[0, 0] = math.inf
    with pytest.raises(ArithmeticError, match="mode='hooks'"):
        step(training, inputs, labels)
    assert training.ledger.releases == 0


def test_r9_a_sample_rate_above_one_is_refused() -> None:
    ledger = PrivacyLedger()
    with pytest.raises(ValueError, match="BatchMemoryManager"):
        ledger.charge(1.0, 2.0)
    assert ledger.releases == 0
    few = DataLoader(data(4), batch_size=8, drop_last=True)
    with pytest.raises(ValueError, match="sample rate would be above 1"):
        private(loader=few)


def test_r9_accumulating_batches_for_one_release_is_refused() -> None:
    training = private()
    backward(training, *batch())
    with pytest.raises(ValueError, match="accumulation"):
        backward(training, *batch())


def test_r10_releases_are_steps_and_not_entries_and_nothing_spent_is_zero() -> None:
    training = private()
    assert training.epsilon(1e-5) == 0.0
    epoch(training)
    assert len(training.ledger.history) == 1
    assert training.ledger.releases == training.releases == 8


def test_r11_the_gdp_accountant_is_refused_and_no_noise_is_infinite_epsilon() -> None:
    with pytest.raises(ValueError, match="less epsilon than is spent"):
        private(accountant="gdp")
    ledger = PrivacyLedger()
    ledger.charge(0.0, 1.0)
    assert ledger.epsilon(1e-5) == math.inf
    prv, rdp = (epsilon_of([(1.0, 0.1, 10)], 1e-5, name) for name in ("prv", "rdp"))
    assert prv == pytest.approx(2.865, abs=2e-3)
    assert rdp == pytest.approx(3.441, abs=2e-3)


@pytest.mark.parametrize("records", [93, 99, 105, 117, 65])
def test_r12_the_rate_accounted_for_is_the_one_sampled_with(records: int) -> None:
    training = private(loader=DataLoader(data(records), batch_size=1))
    step(training, *batch(1))
    ((_, booked, _),) = training.ledger.history
    sampler: Any = training.loader.batch_sampler
    assert booked == training.sample_rate == sampler.sample_rate
    assert booked == pytest.approx(1 / records)
    assert training.optimizer.expected_batch_size == 1


def test_r12_custom_samplers_are_refused() -> None:
    weighted = WeightedRandomSampler([1.0] * 64, 64)
    with pytest.raises(ValueError, match="WeightedRandomSampler is refused"):
        private(loader=DataLoader(data(), batch_size=8, sampler=weighted))
    repeated = RandomSampler(data(), replacement=True, num_samples=128)
    with pytest.raises(ValueError, match="RandomSampler is refused"):
        private(loader=DataLoader(data(), batch_size=8, sampler=repeated))
    with pytest.raises(ValueError, match="batch size"):
        private(loader=DataLoader(data(), batch_size=None))

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter([])

    with pytest.raises(ValueError, match="map-style"):
        private(loader=DataLoader(Stream(), batch_size=8))


def test_r12_batches_are_poisson_and_may_be_empty() -> None:
    training = private(loader=DataLoader(data(16), batch_size=1), seed=0)
    sizes = [size for _ in range(20) for size in epoch(training)]
    assert min(sizes) == 0
    assert training.releases == len(sizes)  # an empty batch is a release of noise, and booked
    mean, variance = sum(sizes) / len(sizes), torch.tensor(sizes, dtype=torch.float64).var().item()
    assert mean == pytest.approx(1.0, abs=0.25)
    assert variance == pytest.approx(16 * (1 / 16) * (15 / 16), rel=0.3)


@pytest.mark.parametrize("mode", MODES)
def test_r12_an_empty_batch_is_pure_noise_and_booked(mode: str) -> None:
    training = private(mode=mode, noise_multiplier=8.0)
    step(training, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    noise = flat(training.model)
    assert training.releases == 1
    assert float(noise.std()) == pytest.approx(1.0, rel=0.4)  # 8 over a batch of 8


def test_r13_a_full_batch_client_is_accounted_in_closed_form() -> None:
    training = private(batch_size=64)
    assert training.sample_rate == 1.0
    assert epoch(training) == [64]
    assert training.epsilon(1e-5) == pytest.approx(4.377178, abs=1e-6)


def test_r14_noise_does_not_come_from_the_global_seed() -> None:
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        training = private()
        step(training, *batch())
        found.append(flat(training.model))
    assert not torch.equal(*found)


def test_r14_a_run_with_a_fixed_seed_is_a_simulation_and_states_no_epsilon() -> None:
    training = private(seed=1)
    step(training, *batch())
    with pytest.raises(LostAccountingError, match="simulation"):
        training.epsilon(1e-5)
    assert training.ledger.epsilon(1e-5) > 0


def test_r14_a_training_cannot_be_copied_with_its_noise() -> None:
    training = private()
    with pytest.raises(TypeError, match="same noise"):
        copy.deepcopy(training.optimizer)
    with pytest.raises(TypeError, match="same noise"):
        pickle.dumps(training.optimizer)
    step(training, *batch())  # and the attempt has broken nothing


def test_r15_one_ledger_serves_all_rounds_of_a_data_set() -> None:
    ledger = PrivacyLedger()
    for _ in range(3):
        epoch(private(ledger=ledger))
    assert ledger.releases == 24
    assert ledger.epsilon(1e-5) == epsilon_of([(1.0, 1 / 8, 24)], 1e-5)
    stored = PrivacyLedger.from_json(json.dumps(json.loads(ledger.to_json())))
    assert stored.state_dict() == ledger.state_dict()


def test_r16_a_certificate_lists_what_leaves_without_noise() -> None:
    outside = certify(
        DPSGD(1.0, 1.0), composition="iid", batch_size=8, label_prior=[0.5, 0.5],
        training_releases=10, sample_rate=0.1,
    )["outside"]  # fmt: skip
    text = " ".join(outside).lower()
    for channel in (
        "loss",
        "accurac",
        "counts",
        "batchnorm",
        "stopping",
        "clipping norm",
        "rounding",
    ):
        assert channel in text, channel


def test_r17_adaptive_clipping_is_not_offered() -> None:
    with pytest.raises(TypeError):
        make_private(  # type: ignore[call-arg]
            network(), torch.optim.SGD(network().parameters(), lr=0.1), DataLoader(data()),
            noise_multiplier=1.0, max_grad_norm=1.0, clipping="adaptive",
        )  # fmt: skip


def test_r18_per_layer_clipping_bounds_each_layer_and_adds_noise_for_the_joint_radius() -> None:
    norms = (0.1, 0.2, 0.3, 0.4)
    training = private(max_grad_norm=norms, noise_multiplier=1e-6)
    step(training, *batch(1, scale=100.0))
    for p, norm in zip(training.model.parameters(), norms, strict=True):
        assert p.grad is not None
        assert float(p.grad.norm()) * 8 <= norm * (1 + 1e-4)
    assert training.optimizer.max_grad_norm == pytest.approx(math.hypot(*norms))
    noisy = private(max_grad_norm=norms, noise_multiplier=1000.0)
    step(noisy, *batch())
    expected = 1000 * math.hypot(*norms) / 8
    assert float(flat(noisy.model).std()) == pytest.approx(expected, rel=0.35)


def test_r18_one_norm_per_trainable_parameter_is_expected_and_ghost_mode_has_one_for_all() -> None:
    with pytest.raises(ValueError, match="4 trainable parameters, got 2"):
        private(max_grad_norm=(1.0, 1.0))
    with pytest.raises(ValueError, match="mode='hooks'"):
        private(max_grad_norm=(1.0, 1.0, 1.0, 1.0), mode="ghost")
