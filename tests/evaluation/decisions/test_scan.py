"""What one message gives away: the answer, and how far it is to be believed."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from gradguard import AddGaussian, ClipByGlobalNorm, Defense, KeepTopK, LocalTraining
from gradguard.evaluation import Data, Scan, UnusableInputError, scan
from gradguard.evaluation.attackers import BLIND
from gradguard.evaluation.decisions.confidence import class_readings, exact_interval
from gradguard.evaluation.decisions.scan import LEAKS, NOT_MEASURED, NOT_SHOWN, UNCLEAR, Answer
from gradguard.evaluation.decisions.scan_table import closing
from tests.evaluation.decisions.messages import AUXILIARY, BATCH, NONE, message, net, victims

QUICK = ("LLG", "BiasCount", "TemplateRegression(head)")
TOP_K = Defense("top-k", transform=KeepTopK(0.01))
NOISE = Defense("noise", transform=AddGaussian(100.0))


def scanned(update: dict[str, torch.Tensor], **changes: Any) -> Scan:
    settings: dict[str, Any] = {
        "model": net(),
        "batch_size": BATCH,
        "data": AUXILIARY,
        "attackers": QUICK,
        "calibration": 20,
        "trials": 60,
        "simulated": 60,
    }
    return scan(update, **(settings | changes))


def true_counts(number: int = BATCH) -> tuple[int, ...]:
    return tuple(np.bincount(victims(number)[1], minlength=10).tolist())


def test_an_undefended_update_leaks_and_its_labels_are_named() -> None:
    found = scanned(message(net()))
    assert found.verdict == LEAKS
    assert found.answer is not None
    assert found.answer.counts == true_counts()
    assert found.answer.asr is not None
    assert found.blind_asr is not None
    assert found.answer.asr > 0.9 > 0.6 > found.blind_asr
    assert tuple(one.count for one in found.classes) == found.answer.counts
    assert found.unlike == ()


def test_a_defended_update_is_read_through_that_defence() -> None:
    found = scanned(message(net(), TOP_K), defense=TOP_K)
    assert found.verdict == LEAKS
    rates = {one.attack: one.asr or 0.0 for one in found.answers}
    assert rates["TemplateRegression(head)"] > rates["LLG"] + 0.2


def test_an_update_drowned_in_noise_is_not_shown_to_leak_which_is_no_proof() -> None:
    found = scanned(message(net(), NOISE), defense=NOISE, trials=200)
    assert found.verdict == NOT_SHOWN
    assert "no proof" in closing(found)


def verdict_of(found: Scan, **intervals: tuple[float, float]) -> Scan:
    """The same scan, had its attackers had these intervals of the advantage; BLIND has none."""
    return replace(
        found,
        worst="LLG",
        answers=(
            Answer(BLIND, (8,), 0.5, (0.4, 0.6), 0.0, (0.0, 0.0)),
            *(Answer(n, (8,), 0.5, (0.4, 0.6), sum(i) / 2, i) for n, i in intervals.items()),
        ),
    )


def test_what_another_attacker_reads_counts_though_calibration_chose_a_worse_one() -> None:
    plain = Scan(batch_size=8, num_classes=10, answers=(), skipped={})
    leaking = verdict_of(plain, LLG=(-0.5, 0.04), IDLG=(0.8, 1.0), RLG=(0.1, 0.2))
    assert leaking.verdict == LEAKS
    assert leaking.strongest is not None
    assert leaking.strongest.attack == "IDLG"
    assert "Labels leak: IDLG reads" in closing(leaking)
    assert "IDLG was not chosen before" in closing(leaking)
    for unclear in (
        verdict_of(plain, LLG=(-0.5, 0.04), IDLG=(0.0, 0.06)),
        verdict_of(plain, LLG=(-0.5, 1.0)),
        verdict_of(plain, LLG=(-0.5, float("nan"))),
    ):
        assert unclear.verdict == UNCLEAR
        assert "nothing here says that the labels are safe" in closing(unclear)
    assert verdict_of(plain, LLG=(-0.5, 0.05), IDLG=(-0.1, 0.04)).verdict == NOT_SHOWN


@pytest.mark.parametrize("seed", range(4))
def test_a_few_messages_never_say_that_nothing_is_shown_where_every_label_is_read(
    seed: int,
) -> None:
    """The defence that two trials once called "not shown" while every label was read."""
    slight = Defense("slight", transform=[ClipByGlobalNorm(1.0), AddGaussian(0.03)])
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    sent = message(model, slight)
    found = scanned(sent, model=model, defense=slight, calibration=1, trials=20, seed=seed)
    assert found.verdict == LEAKS


def test_a_low_rate_is_not_about_an_update_unlike_the_simulated_ones() -> None:
    found = scanned(message(net()), defense=NOISE)
    assert found.unlike
    assert found.verdict == NOT_MEASURED
    assert "nothing here says that the labels are safe" in closing(found)


def test_an_update_after_minus_before_is_noticed() -> None:
    one_class = victims(400)[1] == 3
    images = victims(400)[0][one_class][:BATCH]
    sent = NONE.client(net())(images, torch.full((BATCH,), 3))
    assert scanned(sent).unlike == ()
    turned = scanned({name: -part for name, part in sent.items()})
    assert any("after minus before" in words for words in turned.unlike)


def test_an_update_of_another_model_is_noticed() -> None:
    assert scanned(message(net(1), number=1), batch_size=1).unlike


def test_without_data_labels_are_read_and_no_rate_is_made_up() -> None:
    found = scanned(
        message(net(), number=1), data=None, num_classes=10, batch_size=1, attackers="all"
    )
    assert found.verdict == NOT_MEASURED
    assert found.worst is None
    assert found.classes == ()
    assert found.blind_asr is None
    assert all((one.asr, one.ci, one.advantage) == (None, None, None) for one in found.answers)
    by_name = {one.attack: one.counts for one in found.answers}
    assert by_name["IDLG"] == true_counts(1)
    assert found.skipped["LearnedRegression"] == "needs auxiliary data"
    assert "LLGStar(zeros)" in found.skipped  # only the shape is missing
    shaped = scanned(
        message(net(), number=1), data=None, num_classes=10, batch_size=1, attackers="all",
        input_shape=(1, 8, 8),
    )  # fmt: skip
    assert "LLGStar(zeros)" not in shaped.skipped


def test_what_is_withheld_is_withheld_in_simulations_too() -> None:
    sent = message(net())
    del sent["1.weight"], sent["1.bias"]
    found = scanned(sent)
    assert found.unlike == ()
    assert any("1.weight" in note for note in found.notes)
    assert found.verdict == LEAKS


def test_local_steps_are_simulated() -> None:
    training = LocalTraining(epochs=5, learning_rate=0.05)
    sent = NONE.client(net(), training=training)(*victims())
    found = scanned(sent, training=training)
    assert found.unlike == ()
    assert found.verdict == LEAKS
    assert scanned(sent).unlike  # taken for a gradient, it is too small


def test_the_same_seed_gives_the_same_scan_and_the_global_stream_is_untouched() -> None:
    torch.manual_seed(4)
    before = torch.get_rng_state()
    model = net()
    weights = copy.deepcopy(model.state_dict())
    first = scanned(message(net()), model=model)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert all(torch.equal(weights[name], part) for name, part in model.state_dict().items())
    assert scanned(message(net())) == first
    assert scanned(message(net()), seed=1) != first


def test_the_message_has_no_part_in_any_rate() -> None:
    one, other = scanned(message(net())), scanned(message(net(), start=1200))
    assert [a.asr for a in one.answers] == [a.asr for a in other.answers]
    assert one.worst == other.worst
    assert one.classes != other.classes


def test_a_scan_goes_into_json_with_its_confidences() -> None:
    found = json.loads(json.dumps(scanned(message(net())).to_dict(), allow_nan=False))
    assert found["schema"] == 1
    assert found["verdict"] == LEAKS
    first = found["classes"][0]
    assert first["confidence"] == pytest.approx(first["right"] / first["said"])
    assert first["ci"][0] <= first["confidence"] <= first["ci"][1]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": None}, "how many classes"),
        ({"batch_size": 0}, "batch size"),
        ({"trials": 19}, "trials >= 20"),
        ({"attackers": ("LLGG",)}, "did you mean 'LLG'"),
        ({"defense": replace(NONE, cohort=4)}, "drop the cohort"),
        ({"num_classes": 1, "data": None}, "at least 2 classes"),
    ],
)
def test_what_cannot_be_scanned_is_refused_with_the_reason(
    changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(UnusableInputError, match=says):
        scanned(message(net()), **changes)


def test_confidences_are_counted_on_messages_with_the_same_answer() -> None:
    answers = np.array([[2, 0], [1, 1], [0, 2], [2, 0]])
    truth = np.array([[2, 0], [0, 2], [1, 1], [1, 1]])
    said, none = class_readings(np.array([2, 0]), answers, truth)
    assert (said.said, said.right, said.base) == (3, 2, 0.75)
    assert (none.said, none.right, none.base) == (2, 1, 0.25)
    never = class_readings(np.array([0, 2]), np.array([[2, 0]]), np.array([[2, 0]]))[0]
    assert never.confidence is None
    assert never.ci == (0.0, 1.0)


@pytest.mark.parametrize("share", [0.03, 0.5, 0.9])
def test_the_exact_interval_holds_the_truth_at_least_as_often_as_it_says(share: float) -> None:
    of = 30
    held = sum(
        stats.binom.pmf(right, of, share)
        for right in range(of + 1)
        if exact_interval(right, of)[0] <= share <= exact_interval(right, of)[1]
    )
    assert held >= 0.95


@pytest.mark.slow
def test_confidences_hold_for_updates_of_other_images() -> None:
    """Calibration itself: what is said at a confidence is right about so often."""
    rng = np.random.default_rng(0)
    model, client = net(), TOP_K.client(net(), seed=7)
    first = scanned(message(net(), TOP_K), defense=TOP_K, trials=200)
    expected, right = [], []
    labels = victims(800)[1]
    for trial in range(25):
        classes = rng.choice(10, size=3)
        rows = rng.choice(np.flatnonzero(np.isin(labels, classes)), size=BATCH, replace=False)
        images = victims(800)[0][rows]
        found = scanned(
            client(images, labels[rows]), model=model, defense=TOP_K, trials=200, seed=0
        )
        assert found.worst == first.worst, trial
        true = np.bincount(labels[rows], minlength=10)
        for one in found.classes:
            if one.confidence is not None and one.said >= 20:
                expected.append(one.confidence)
                right.append((true[one.label] >= 1) == (one.count >= 1))
    assert len(right) > 200
    assert abs(np.mean(right) - np.mean(expected)) < 0.05


def test_a_small_data_set_is_enough() -> None:
    few = Data("few", AUXILIARY.images[:400], AUXILIARY.labels[:400], 10)
    assert scanned(message(net()), data=few).verdict == LEAKS
