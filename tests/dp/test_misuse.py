"""Ways to believe in a guarantee that does not hold, each of them refused."""

from __future__ import annotations

import copy
import json
import math
import multiprocessing
from typing import Any

import pytest
import torch
from opacus.schedulers import ExponentialGradClip
from opacus.utils.batch_memory_manager import BatchMemoryManager
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gradguard import DPSGD, Identity, guard
from gradguard.dp import PrivacyLedger, PrivateClient, PrivateTraining, UnclippedGradientError
from gradguard.dp.gaussian import gaussian_dp_epsilon
from gradguard.hook_warning import without_hook_warning
from tests.dp.setting import backward, batch, data, epoch, flat, network, private, step
from tests.optimizer.training import differentiate

MODES = ["hooks", "ghost"]


@pytest.mark.parametrize("mode", MODES)
def test_stepping_the_optimizer_that_was_given_is_refused(mode: str) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = private(model=model, optimizer=optimizer, mode=mode)
    before = [p.detach().clone() for p in model.parameters()]
    backward(training, *batch())
    with pytest.raises(RuntimeError, match=r"training\.optimizer"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    step(training, *batch())
    training.optimizer.zero_grad()
    backward(training, *batch(seed=2))
    with pytest.raises(RuntimeError, match=r"training\.optimizer"):
        optimizer.step()
    assert training.releases == 1


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_the_guard_hands_out_no_gradient_that_was_not_noised(mode: str, given: bool) -> None:
    model = network()
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.1)
    if given:
        optimizer = guard(optimizer, Identity(), model=model)
    training = private(model=model, optimizer=optimizer, mode=mode)
    for _ in range(2):
        training.optimizer.zero_grad()
        backward(training, *batch())
        for escape in (training.guard.release, training.guard.step):
            with pytest.raises(RuntimeError, match=r"training\.release"):
                escape()
        assert training.release()
    assert training.releases == 2
    training.guard.step()  # what was noised and sent may be applied locally


def test_in_ghost_mode_a_scheduled_clipping_norm_changes_clipping_and_noise_together() -> None:
    training = private(mode="ghost", noise_multiplier=1e-6, max_grad_norm=1.0)
    schedule = ExponentialGradClip(training.optimizer, gamma=0.01)
    schedule.step()
    assert training.optimizer.max_grad_norm == pytest.approx(0.01)
    step(training, *batch(1, scale=50.0))
    assert float(flat(training.model).norm()) * 8 <= 0.01 * (1 + 1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_a_clipping_norm_changed_within_one_release_is_refused(mode: str) -> None:
    training = private(mode=mode, max_grad_norm=10.0)
    training.optimizer.signal_skip_step(do_skip=True)
    step(training, *batch())
    training.optimizer.max_grad_norm = 0.1
    training.optimizer.signal_skip_step(do_skip=False)
    with pytest.raises(RuntimeError, match="max_grad_norm was changed"):
        step(training, *batch())
    assert training.releases == 0


def test_in_ghost_mode_a_norm_changed_between_backward_and_step_is_refused() -> None:
    training = private(mode="ghost", max_grad_norm=10.0)
    backward(training, *batch())
    training.optimizer.max_grad_norm = 5.0
    with pytest.raises(RuntimeError, match="max_grad_norm was changed"):
        training.optimizer.step()
    assert training.releases == 0


def test_with_a_norm_per_parameter_the_joint_norm_cannot_be_scheduled_alone() -> None:
    training = private(max_grad_norm=(1.0, 1.0, 1.0, 1.0))
    training.optimizer.max_grad_norm = 0.01
    with pytest.raises(RuntimeError, match="max_grad_norm was changed"):
        step(training, *batch())


def test_in_ghost_mode_a_layer_unfrozen_in_training_is_refused_for_no_norm_would_count_it() -> None:
    model = network()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = private(model=model, optimizer=optimizer, mode="ghost")
    step(training, *batch())
    model[0].requires_grad_(True)
    with pytest.raises(RuntimeError, match="trainable parameters changed"):
        step(training, *batch())
    assert training.releases == 1


def test_with_a_norm_per_parameter_freezing_in_training_is_refused_for_norms_would_shift() -> None:
    model = network()
    training = private(model=model, max_grad_norm=(1.0, 2.0, 3.0, 4.0))
    step(training, *batch())
    model[0].requires_grad_(False)
    training.optimizer.zero_grad(set_to_none=True)
    for p in model[0].parameters():
        p.grad = None
    with pytest.raises(RuntimeError, match="trainable parameters changed"):
        step(training, *batch())


@pytest.mark.parametrize("mode", MODES)
def test_a_realised_batch_size_cannot_replace_the_public_one(mode: str) -> None:
    training = private(mode=mode)
    training.optimizer.expected_batch_size = 5
    with pytest.raises(RuntimeError, match="tells how many"):
        step(training, *batch(5))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_a_criterion_that_is_no_mean_is_refused(mode: str, reduction: str) -> None:
    with pytest.raises(ValueError, match="mean"):
        private(mode=mode, criterion=nn.CrossEntropyLoss(reduction=reduction))


class _Mean(nn.Module):
    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, labels)


def test_in_ghost_mode_a_criterion_without_a_loss_per_example_is_refused() -> None:
    training = private(mode="ghost", criterion=_Mean())
    with pytest.raises(ValueError, match="one loss for each example"):
        step(training, *batch())
    assert training.releases == 0


def test_a_plain_backward_after_the_clipped_one_is_refused_in_ghost_mode() -> None:
    training = private(mode="ghost", max_grad_norm=100.0)
    inputs, labels = batch()
    backward(training, inputs, labels)
    with without_hook_warning():
        differentiate(nn.functional.cross_entropy(training.model(inputs), labels))
    with pytest.raises(UnclippedGradientError, match=r"training\.criterion"):
        training.optimizer.step()
    assert training.releases == 0


def test_in_ghost_mode_the_sum_is_held_against_the_norms_that_were_clipped() -> None:
    training = private(mode="ghost", max_grad_norm=100.0)
    inputs, labels = batch()
    outputs = training.model(inputs)
    weight = next(training.model.parameters())
    loss = training.criterion(outputs, labels) + 100.0 * weight.square().sum()
    with without_hook_warning():
        differentiate(loss)
    with pytest.raises(UnclippedGradientError):
        training.optimizer.step()


def test_a_refused_step_in_ghost_mode_leaves_no_gradient_behind() -> None:
    training = private(mode="ghost")
    backward(training, *batch())
    weight = next(training.model.parameters())
    weight.register_post_accumulate_grad_hook(lambda p: None)  # type: ignore[no-untyped-call]
    with pytest.raises(RuntimeError, match="hook on a parameter"):
        training.optimizer.step()
    assert all(p.grad is None for p in training.model.parameters())


class _Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(inputs.reshape(-1, 2))
        return outputs.reshape(len(inputs), 2, 2).mean(1)


@pytest.mark.parametrize("mode", MODES)
def test_a_model_that_turns_one_example_into_several_rows_is_refused(mode: str) -> None:
    training = private(mode=mode, model=_Tokens())
    with pytest.raises(UnclippedGradientError, match="first dimension"):
        step(training, *batch())
    assert training.releases == 0


def test_a_state_with_other_releases_than_were_made_here_is_refused() -> None:
    spent, cheap = PrivacyLedger(), PrivacyLedger()
    for _ in range(3):
        spent.charge(0.5, 1.0)
        cheap.charge(50.0, 1.0)
    with pytest.raises(ValueError, match="would forget some"):
        spent.load_state_dict(cheap.state_dict())
    cheap.charge(50.0, 1.0)
    with pytest.raises(ValueError, match="would forget some"):
        spent.load_state_dict(cheap.state_dict())
    longer = PrivacyLedger.from_json(spent.to_json())
    longer.charge(0.5, 1.0)
    longer.charge(0.7, 1.0)
    spent.load_state_dict(longer.state_dict())
    assert spent.releases == 5


@pytest.mark.parametrize(
    "entry", ["[1, 0.1, 2.7]", "[1, 0.1, 1e400]", "[true, 1, 1]", "[1, 1, true]"]
)
def test_a_count_of_releases_that_is_no_count_is_refused(entry: str) -> None:
    head = '{"format": 1, "accountant": "prv", "max_epsilon": null, "delta": null, "history": '
    with pytest.raises(ValueError, match="privacy ledger"):
        PrivacyLedger.from_json(head + f"[{entry}]}}")


def test_a_budget_of_text_is_refused_as_no_ledger() -> None:
    state = {**PrivacyLedger().state_dict(), "max_epsilon": 1.0, "delta": "a"}
    with pytest.raises(ValueError, match="not the"):
        PrivacyLedger().load_state_dict(state)


def test_a_budget_made_smaller_counts_at_once() -> None:
    ledger = PrivacyLedger(max_epsilon=100.0, delta=1e-5)
    for _ in range(40):
        ledger.charge(4.0, 1.0)
    ledger.max_epsilon = ledger.epsilon(1e-5)
    with pytest.raises(RuntimeError, match="above the budget"):
        ledger.charge(4.0, 1.0)


def test_a_ledger_must_be_one() -> None:
    with pytest.raises(TypeError, match="PrivacyLedger"):
        private(ledger={})


@pytest.mark.parametrize("count", [-1, 2.5, "3", True])
def test_a_corrupted_count_of_releases_is_refused(count: Any) -> None:
    with pytest.raises(ValueError, match="private training"):
        private().load_state_dict({**private().state_dict(), "releases": count})


def test_steps_with_a_known_seed_are_not_forgotten_by_loading_a_state() -> None:
    real, simulated = private(), private(seed=1)
    step(real, *batch())
    step(simulated, *batch())
    simulated.load_state_dict(json.loads(json.dumps(real.state_dict())))
    with pytest.raises(RuntimeError, match="simulation"):
        simulated.epsilon(1e-5)


def test_a_delta_at_which_a_record_may_be_published_is_refused() -> None:
    training = private()
    with pytest.raises(ValueError, match="64 records"):
        training.epsilon(1 / 64)
    with pytest.raises(ValueError, match="64 records"):
        private(target_epsilon=1.0, target_delta=0.1, epochs=1)
    with pytest.raises(ValueError, match="64 records"):
        private(max_epsilon=1.0, target_delta=0.1)


@pytest.mark.parametrize("delta", [0.0, 1.0, 2.0, math.nan])
def test_a_target_delta_that_is_no_probability_is_refused(delta: float) -> None:
    with pytest.raises(ValueError, match="delta must be"):
        private(target_epsilon=1.0, target_delta=delta, epochs=1)


def test_epochs_are_whole() -> None:
    with pytest.raises(ValueError, match="epochs must be"):
        private(target_epsilon=1.0, target_delta=1e-5, epochs=1.5)


def test_the_loader_of_a_training_keeps_its_rate_in_the_next() -> None:
    first = private(loader=DataLoader(data(93), batch_size=1))
    second = private(loader=first.loader)
    assert second.sample_rate == first.sample_rate == 1 / 93


def _physical(training: PrivateTraining) -> BatchMemoryManager:
    return BatchMemoryManager(
        data_loader=training.loader, max_physical_batch_size=2, optimizer=training.optimizer
    )


@pytest.mark.parametrize("mode", MODES)
def test_a_large_batch_that_was_broken_off_is_not_part_of_the_next_release(mode: str) -> None:
    training = private(mode=mode, batch_size=16, seed=0)
    with _physical(training) as loader:
        for inputs, labels in loader:
            step(training, inputs, labels)
            break
    assert training.releases == 0
    assert any(getattr(p, "summed_grad", None) is not None for p in training.optimizer.params)
    for inputs, labels in training.loader:
        assert all(getattr(p, "summed_grad", None) is None for p in training.optimizer.params)
        step(training, inputs, labels)
        break
    assert training.releases == 1


def test_a_physical_batch_without_a_step_is_refused_before_batches_are_mixed() -> None:
    training = private(batch_size=16, seed=0)

    def all_but_the_second() -> None:
        with _physical(training) as loader:
            for i, (inputs, labels) in enumerate(loader):
                if i != 1:
                    step(training, inputs, labels)

    with pytest.raises(RuntimeError, match="no step was taken"):
        all_but_the_second()
    epoch(training)  # and the next epoch begins anew
    assert training.releases == 4


def _train_in_child(training: PrivateTraining, queue: Any) -> None:
    try:
        step(training, *batch())
        queue.put("stepped")
    except RuntimeError as error:
        queue.put(str(error))


@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_a_forked_copy_of_a_training_cannot_release_with_the_same_noise() -> None:
    torch.set_num_threads(1)
    context = multiprocessing.get_context("fork")
    queue, training = context.Queue(), private()
    child = context.Process(target=_train_in_child, args=(training, queue))
    child.start()
    found = queue.get(timeout=60)
    child.join()
    assert "another process" in found
    step(training, *batch())


def test_a_forward_pass_without_backward_is_named_as_the_reason() -> None:
    training = private()
    training.model(batch()[0])
    with pytest.raises(RuntimeError, match="no_grad"):
        step(training, *batch())


def test_a_client_without_a_public_batch_size_scales_by_that_of_the_batch() -> None:
    dp = DPSGD(1e-9, 1e-3)
    inputs, labels = batch(4)
    own, public = (
        PrivateClient(network(), dp, Identity()),
        PrivateClient(network(), dp, Identity(), batch_size=8),
    )
    a, b = own(inputs, labels), public(inputs, labels)
    torch.testing.assert_close(a["0.weight"], 2 * b["0.weight"], rtol=1e-3, atol=1e-9)


def test_the_closed_form_survives_extreme_arguments() -> None:
    assert gaussian_dp_epsilon(1e-3, 1e-300) > 0
    assert gaussian_dp_epsilon(100.0, 1e-300) < math.inf


class _Named(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"inputs": torch.zeros(4), "label": 1}


def test_a_first_batch_without_examples_has_the_form_of_all_others() -> None:
    training = private(loader=DataLoader(_Named(), batch_size=1))
    found: Any = training.loader.collate_fn([])
    assert found["inputs"].shape == (0, 4)
    assert found["label"].dtype == torch.int64


def test_a_parameter_unfrozen_outside_the_optimizer_is_refused() -> None:
    model = network()
    model[0].requires_grad_(False)
    training = private(model=model)
    model[0].weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"lacks .*0\.weight"):
        step(training, *batch())


def test_a_step_that_failed_leaves_no_sum_for_the_next_release() -> None:
    training = private(mode="ghost")
    training.optimizer.signal_skip_step(do_skip=True)
    step(training, *batch())
    training.optimizer.signal_skip_step(do_skip=False)
    inputs, labels = batch()
    with pytest.raises(ArithmeticError):
        step(training, inputs * math.inf, labels)
    training.optimizer.expected_batch_size = 3
    with pytest.raises(RuntimeError):
        step(training, inputs, labels)
    assert all(getattr(p, "summed_grad", None) is None for p in training.optimizer.params)


def test_after_a_failure_batches_drawn_ahead_are_not_mixed() -> None:
    training = private()
    training.optimizer.prefetching = True
    for skip in (True, False, False):
        training.optimizer.signal_skip_step(do_skip=skip)
    training.optimizer.expected_batch_size = 3
    with pytest.raises(RuntimeError, match="public constant"):
        step(training, *batch())
    training.optimizer.expected_batch_size = 8
    with pytest.raises(RuntimeError, match="new iteration"):
        step(training, *batch())
    epoch(training)
    assert training.releases == 8


def _message_in_child(client: PrivateClient, queue: Any) -> None:
    queue.put(client(*batch())["0.bias"].tolist())


@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_forked_copies_of_a_client_do_not_share_noise() -> None:
    context = multiprocessing.get_context("fork")
    queue, client = context.Queue(), PrivateClient(network(), DPSGD(1.0, 1.0), Identity())
    child = context.Process(target=_message_in_child, args=(client, queue))
    child.start()
    there = queue.get(timeout=60)
    child.join()
    assert client(*batch())["0.bias"].tolist() != there


def test_workers_load_batches_for_a_private_training() -> None:
    training = private(loader=DataLoader(data(), batch_size=16, num_workers=1), seed=0)
    with _physical(training) as loader:
        for inputs, labels in loader:
            step(training, inputs, labels)
    assert training.releases == 4


@pytest.mark.parametrize("mode", MODES)
def test_a_frozen_batch_norm_may_not_use_the_statistics_of_a_batch(mode: str) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    model[1].requires_grad_(False)
    with pytest.raises(ValueError, match="mixes examples"):
        step(private(model=copy.deepcopy(model), mode=mode), *batch())
    training = private(model=model, mode=mode)
    model[1].eval()
    step(training, *batch())
    with torch.no_grad():
        model.train()(batch()[0])  # evaluation tells the optimizer nothing
    assert training.releases == 1


def test_a_batch_norm_without_running_statistics_is_refused() -> None:
    norm = nn.BatchNorm1d(8, affine=False, track_running_stats=False)
    model = nn.Sequential(nn.Linear(4, 8), norm, nn.Linear(8, 2))
    training = private(model=model)
    norm.eval()
    with pytest.raises(ValueError, match="mixes examples"):
        step(training, *batch())


@pytest.mark.parametrize("guarded", [False, True])
def test_an_optimizer_serves_one_private_training_only(guarded: bool) -> None:
    model = network()
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    first = private(model=model, optimizer=plain)
    with pytest.raises(ValueError, match="another private training"):
        private(model=first.model, optimizer=first.guard if guarded else plain)


def test_a_copied_guard_hands_out_nothing() -> None:
    training = private()
    step(training, *batch())
    copied = copy.deepcopy(training.guard)
    for group in copied.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match=r"training\.release"):
        copied.release()
