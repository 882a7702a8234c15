"""Template regression against defences, as plain functions on gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from gradguard.attacks import LLG, Knowledge, NotApplicableError, Observation, TemplateRegression
from gradguard.attacks.coordinates import Coordinates
from gradguard.attacks.templates import class_gradients as module
from gradguard.attacks.templates.class_gradients import Remembered, class_gradients
from gradguard.attacks.templates.groundwork import names_of
from tests.attacks.models import (
    CLASSES,
    FlatModel,
    batches,
    cnn,
    data,
    gradient,
    knowledge,
    overlap,
    skewed,
)

Update = dict[str, Tensor]
Defence = Callable[[Update], Update]
WHOLE = Coordinates(dict.fromkeys(n for n, _ in cnn().named_parameters()))


def keep_largest(update: Update) -> Update:
    """Global top-k of 2 %."""
    every = torch.cat([t.flatten().abs() for t in update.values()])
    threshold = every.topk(round(0.02 * len(every))).values[-1]
    return {n: torch.where(t.abs() >= threshold, t, 0.0) for n, t in update.items()}


def noised(update: Update) -> Update:
    return {n: t + 0.02 * torch.randn_like(t) for n, t in update.items()}


def signs(update: Update) -> Update:
    return {n: t.sign() * t.abs().mean() for n, t in update.items()}


def clipped(update: Update) -> Update:
    norm = torch.cat([t.flatten() for t in update.values()]).norm()
    return {n: 0.01 * t / norm for n, t in update.items()}


def random_tenth(update: Update) -> Update:
    return {n: t * (torch.rand_like(t) < 0.1) / 0.1 for n, t in update.items()}


def headless(update: Update) -> Update:
    return {n: torch.zeros_like(t) if n.startswith("5.") else t for n, t in update.items()}


def attacked(
    defence: Defence, part: str, *, composition: str | None = "skewed"
) -> tuple[float, float]:
    """Success of the template attack and of LLG on 40 skewed batches."""
    model, counts = cnn(), skewed(40)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        known = knowledge(
            model, client=lambda x, y: defence(gradient(model, x, y)), composition=composition
        )
        fitted = TemplateRegression(part).fit(known)
        seen = [Observation(defence(o.update), 8, CLASSES) for _, _, o in batches(model, counts)]
        return tuple(  # type: ignore[return-value]
            overlap(attack.infer(seen), counts) for attack in (fitted, LLG().fit(known))
        )


@pytest.mark.parametrize("part", ["bias", "head", "body", "all"])
def test_undefended_gradients_are_read_from_any_part(part: str) -> None:
    assert attacked(lambda update: update, part)[0] > 0.95


@pytest.mark.parametrize("composition", ["skewed", None])
def test_true_top_k_is_read_where_llg_is_not(composition: str | None) -> None:
    template, llg = attacked(keep_largest, "all", composition=composition)
    assert template > 0.95
    assert template > llg + 0.1


@pytest.mark.parametrize(
    ("defence", "least"), [(noised, 0.85), (signs, 0.8), (clipped, 0.95), (random_tenth, 0.9)]
)
def test_noise_signs_clipping_and_random_sparsifiers_are_read(
    defence: Defence, least: float
) -> None:
    assert attacked(defence, "all")[0] > least


def test_withholding_the_head_hides_nothing() -> None:
    template, llg = attacked(headless, "body")
    assert template > 0.95
    assert llg < 0.7  # an even spread: nothing was sent


def test_message_without_information_is_answered_like_a_blind_guess() -> None:
    known = knowledge(
        cnn(), client=lambda x, y: {n: 0 * t for n, t in gradient(cnn(), x, y).items()}
    )
    seen = Observation({n: torch.zeros_like(p) for n, p in cnn().named_parameters()}, 8, CLASSES)
    for part in ("bias", "head", "body", "all"):
        assert TemplateRegression(part).fit(known).infer([seen]).tolist() == [[2, 2, 2, 2]]


def test_the_same_knowledge_and_client_give_the_same_answer() -> None:
    seen = [o for _, _, o in batches(cnn(), skewed(10))]
    answers = [TemplateRegression("all").fit(knowledge(cnn())).infer(seen) for _ in range(2)]
    assert torch.equal(*answers)


def test_class_without_auxiliary_example_is_never_answered() -> None:
    inputs, labels = data(80)
    kept = labels != 1
    known = knowledge(cnn(), auxiliary=(inputs[kept], labels[kept]))
    seen = [o for _, _, o in batches(cnn(), skewed(20))]
    assert TemplateRegression("all").fit(known).infer(seen)[:, 1].sum() == 0


def test_head_without_bias_has_no_bias_to_read() -> None:
    with pytest.raises(NotApplicableError, match="no bias"):
        TemplateRegression("bias").fit(knowledge(cnn(bias=False)))
    assert attacked_without_bias() > 0.95


def attacked_without_bias() -> float:
    model, counts = cnn(bias=False), skewed(20)
    seen = [o for _, _, o in batches(model, counts)]
    return overlap(TemplateRegression("head").fit(knowledge(model)).infer(seen), counts)


def test_model_of_an_output_layer_alone_has_no_body() -> None:
    with pytest.raises(NotApplicableError, match="no trainable layer"):
        TemplateRegression("body").fit(knowledge(FlatModel()))
    TemplateRegression("all").fit(knowledge(FlatModel()))


def test_parts_are_the_parameters_they_name() -> None:
    known = knowledge(cnn())
    assert names_of(known, None, "bias") == ["5.bias"]
    assert names_of(known, None, "head") == ["5.weight", "5.bias"]
    assert names_of(known, None, "body") == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert len(names_of(known, None, "all")) == 6


def test_unknown_coordinates_are_refused() -> None:
    with pytest.raises(ValueError, match="bias, head, body, all"):
        TemplateRegression("tail")


def test_other_batch_size_than_it_was_fitted_for_is_refused() -> None:
    fitted = TemplateRegression("all").fit(knowledge(cnn()))
    ((_, _, seen),) = batches(cnn(), skewed(1, size=16))
    with pytest.raises(ValueError, match="fit again"):
        fitted.infer([seen])


def test_model_that_changed_in_place_is_prepared_again() -> None:
    model, counts = cnn(), skewed(20)
    known = knowledge(model)
    TemplateRegression("all").fit(known)
    model.load_state_dict(cnn(5).state_dict())
    seen = [o for _, _, o in batches(model, counts)]
    assert overlap(TemplateRegression("all").fit(known).infer(seen), counts) > 0.95


def test_model_is_not_changed() -> None:
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.BatchNorm1d(64), torch.nn.ReLU(), torch.nn.Linear(64, CLASSES)
    ).eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    copy = torch.nn.Sequential(*model).eval()
    TemplateRegression("head").fit(knowledge(model, client=lambda x, y: gradient(copy, x, y)))
    assert not model.training
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_class_means_and_variance_are_those_of_per_example_gradients() -> None:
    model = cnn().double()
    inputs, labels = data(60)
    inputs = inputs.double()
    found = class_gradients(model, (inputs, labels), num_classes=CLASSES, coordinates=WHOLE)
    each = np.stack(
        [WHOLE.read(gradient(model, inputs[[i]], labels[[i]])) for i in range(len(labels))]
    )
    groups = [each[labels.numpy() == c] for c in range(CLASSES)]
    np.testing.assert_allclose(found.mean, np.stack([g.mean(0) for g in groups]), atol=1e-6)
    # Fifteen examples of a class make seven micro-batches, one of them with three examples.
    between = [
        sum(len(p) * (p.mean(0) - g.mean(0)) ** 2 for p in np.array_split(g, 7)) / 6 for g in groups
    ]
    np.testing.assert_allclose(found.variance, np.mean(between, axis=0), rtol=1e-3, atol=1e-9)


def test_variance_of_one_example_is_the_size_times_the_variance_between_micro_batches() -> None:
    model = cnn()
    few = class_gradients(model, data(2000), num_classes=CLASSES, coordinates=WHOLE)
    each = np.stack(
        [WHOLE.read(gradient(model, x[None], y[None])) for x, y in zip(*data(400), strict=True)]
    )
    labels = data(400)[1].numpy()
    exact = np.mean([each[labels == c].var(0, ddof=1) for c in range(CLASSES)], axis=0)
    assert few.variance.sum() == pytest.approx(exact.sum(), rel=0.1)


def test_remembered_gradients_are_computed_once_for_equal_content(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def counting(*args: object, **kwargs: object) -> object:
        calls.append(1)
        return class_gradients(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "class_gradients", counting)
    remembered = Remembered(entries=2)
    for seed in (0, 0, 1, 0):
        remembered(cnn(seed), data(20), num_classes=CLASSES, coordinates=WHOLE)
    assert len(calls) == 2
    # Equal parameters in a network that computes something else.
    other = torch.nn.Sequential(
        *[torch.nn.Tanh() if i in (1, 3) else m for i, m in enumerate(cnn())]
    )
    remembered(other, data(20), num_classes=CLASSES, coordinates=WHOLE)
    remembered(cnn(1), data(20), num_classes=CLASSES, coordinates=WHOLE)
    assert len(calls) == 4


def test_unusable_auxiliary_data_is_refused() -> None:
    inputs, labels = data(20)
    with pytest.raises(ValueError, match="a label each"):
        class_gradients(cnn(), (inputs, labels[:5]), num_classes=4, coordinates=WHOLE)
    with pytest.raises(ValueError, match=r"0\.\.3"):
        class_gradients(cnn(), (inputs, labels + 1), num_classes=4, coordinates=WHOLE)
    with pytest.raises(ValueError, match=r"client=\.\.\., model="):
        TemplateRegression("all").fit(Knowledge(batch_size=3))
