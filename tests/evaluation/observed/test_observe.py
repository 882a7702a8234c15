"""What is evaluated is what is deployed: recorded traffic leaks what the study says it leaks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gradguard import DPSGD, AddGaussian, Defense, KeepTopK, LocalTraining, Sign
from gradguard.evaluation import Row, UnusableInputError, evaluate
from gradguard.evaluation.decisions.playing import BASELINE_NAMES
from gradguard.evaluation.metrics import Interval
from gradguard.evaluation.observed.observe import InterruptedObservationError, observe
from gradguard.evaluation.observed.result import (
    LEAKS,
    NOT_MEASURED,
    ObservedReport,
    ObservedRow,
)
from gradguard.evaluation.observed.stating import closing, remarks, render_observed
from gradguard.evaluation.progress import Silent
from gradguard.updates.recording import Recorder, record_labels
from tests.evaluation.observed.federation import batches_of, bench_of, federate, study_of

TOP = Defense("top-k", transform=KeepTopK(0.05))
NONE = Defense("none", transform=[])
SIGN = Defense("sign", transform=Sign())
NOISE = Defense("noise", transform=AddGaussian(0.01))
LOUD = Defense("loud", transform=AddGaussian(0.04))
QUICK: dict[str, Any] = {"attackers": ("LLG", "NegativeColumns"), "calibration": 50}


def quick(
    folder: Path, *, defense: Defense = TOP, clients: int = 3, rounds: int = 2, **how: Any
) -> ObservedReport:
    study = study_of(defense, **QUICK)
    federate(folder, bench_of(study), defense, clients=clients, rounds=rounds, **how)
    return observe(study, folder)


def overlap(one: Interval, other: Interval) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]


def agree(observed: ObservedRow, direct: Row) -> bool:
    """Attack by attack: which of two near equals is the worst, calibration decides by chance."""
    return (
        observed.attacks.keys() == direct.attacks.keys()
        and all(overlap(observed.attacks[n].ci, score.ci) for n, score in direct.attacks.items())
        and overlap(observed.worst.ci, direct.worst_ci)
        and overlap(observed.worst.advantage_ci, direct.advantage_ci)
    )


@pytest.mark.slow
@pytest.mark.parametrize("defense", [TOP, NOISE, SIGN])
def test_recorded_traffic_leaks_what_the_direct_evaluation_says(
    tmp_path: Path, defense: Defense
) -> None:
    study = study_of(defense)
    federate(tmp_path, bench_of(study), defense, clients=20, rounds=3)
    report = observe(study, tmp_path)
    [direct] = evaluate(study).rows
    for row in (*report.of_view("all"), *report.of_view("round")):
        assert agree(row, direct), (row.view, row.of, row.worst, direct.worst_ci)
        assert row.verdict == LEAKS
        assert not row.alarming


@pytest.mark.slow
@pytest.mark.parametrize("other", [NONE, LOUD])
def test_traffic_of_another_defence_does_not(tmp_path: Path, other: Defense) -> None:
    """The power of the comparison above: a weaker and a stronger defence are told apart."""
    study = study_of(other)
    federate(tmp_path, bench_of(study), other, clients=20, rounds=3)
    report = observe(study, tmp_path)
    [direct] = evaluate(study_of(NOISE)).rows
    [row] = report.of_view("all")
    assert not overlap(row.worst.ci, direct.worst_ci)
    assert not overlap(row.worst.advantage_ci, direct.advantage_ci)


@pytest.mark.slow
def test_pooled_over_rounds_it_leaks_what_several_rounds_of_a_study_leak(tmp_path: Path) -> None:
    study = study_of(NOISE, rounds=(1, 3))
    federate(tmp_path, bench_of(study), NOISE, clients=30, rounds=3, same_data=True)
    report = observe(study, tmp_path)
    once, thrice = evaluate(study).rows
    [alone], [together] = report.of_view("all"), report.of_view("pooled")
    assert (alone.messages, alone.independent) == (90, 30)
    assert (together.messages, together.independent) == (30, 30)
    assert agree(alone, once)
    assert agree(together, thrice)
    assert not overlap(together.worst.ci, alone.worst.ci)


@pytest.mark.slow
def test_of_a_rounds_mean_it_leaks_what_a_cohort_of_a_study_leaks(tmp_path: Path) -> None:
    summed = replace(NONE, cohort=3)
    study = study_of(NONE)
    federate(tmp_path, bench_of(study), NONE, clients=3, rounds=12)
    report = observe(study, tmp_path)
    [direct] = evaluate(study_of(summed)).rows
    [row], [alone] = report.of_view("cohort"), report.of_view("all")
    assert (row.messages, row.cohort) == (12, (3, 3))
    assert agree(row, direct)
    assert row.worst.ci[1] < alone.worst.ci[0]


@pytest.mark.slow
def test_several_local_steps_are_simulated_as_they_were_taken(tmp_path: Path) -> None:
    training = LocalTraining(epochs=5, learning_rate=0.2)
    study = study_of(SIGN, client=training)
    federate(tmp_path, bench_of(study), SIGN, clients=20, rounds=1)
    [row] = observe(study, tmp_path).of_view("all")
    [direct] = evaluate(study).rows
    assert agree(row, direct)
    assert not row.alarming


def test_rows_are_there_for_every_view(tmp_path: Path) -> None:
    report = quick(tmp_path, same_data=True)
    seen = [(row.view, row.of, row.messages, row.independent) for row in report.rows]
    assert seen == [
        ("all", "", 6, 3),
        *(("round", "1", 3, 3), ("round", "2", 3, 3)),
        *(("client", "0", 2, 2), ("client", "1", 2, 2), ("client", "2", 2, 2)),
        ("pooled", "", 3, 3),
        ("cohort", "", 2, 1),
    ]
    assert (report.rounds, report.clients, report.messages) == (2, 3, 6)
    assert report.left_out == {}
    assert report.rows[0].batch_sizes == (8, 8)


def test_new_labels_in_every_round_cannot_be_pooled_and_that_is_said(tmp_path: Path) -> None:
    report = quick(tmp_path)
    assert not report.of_view("pooled")
    assert "differ from round to round" in report.left_out["pooled"]
    assert any("differ from round to round" in line for line in remarks(report))
    assert report.rows[0].independent == 6


@pytest.mark.slow
def test_one_differing_label_widens_no_certainty_and_turns_off_no_view(tmp_path: Path) -> None:
    whole = quick(tmp_path, same_data=True)
    path = tmp_path / "labels" / "round-0002" / "client-2.json"
    table = json.loads(path.read_text())
    first = next(i for i, count in enumerate(table["counts"]) if count)
    table["counts"][first] -= 1
    table["counts"][first - 1] += 1
    path.write_text(json.dumps(table))
    report = observe(study_of(TOP, **QUICK), tmp_path)
    assert (whole.rows[0].independent, report.rows[0].independent) == (3, 4)
    assert [row.messages for row in report.of_view("pooled")] == [2]
    assert "the labels of 1 clients (2) differ" in report.left_out["pooled"]


def test_truths_have_no_part_in_choosing_the_worst_attack(tmp_path: Path) -> None:
    before = quick(tmp_path)
    for path in (tmp_path / "labels").rglob("*.json"):
        text = path.read_text()
        start = text.index("[")
        counts = np.fromstring(text[start + 1 : text.index("]")], sep=",", dtype=int)
        path.write_text(f"{text[:start]}{np.roll(counts, 3).tolist()}}}")
    after = observe(study_of(TOP, **QUICK), tmp_path)
    for one, other in zip(before.rows, after.rows, strict=True):
        assert one.worst_attack == other.worst_attack
        assert one.example == other.example
    assert after.rows[0].worst.asr < before.rows[0].worst.asr


def test_no_blind_guess_is_ever_the_worst_attack(tmp_path: Path) -> None:
    """Where attackers are no better on simulated messages, it would hide what they read."""
    deaf = Defense("deaf", transform=AddGaussian(10.0))
    report = quick(tmp_path, defense=deaf, clients=4, rounds=1)
    for row in report.rows:
        assert set(row.attacks) >= BASELINE_NAMES
        assert row.worst_attack not in BASELINE_NAMES
        assert row.shown_attack not in BASELINE_NAMES


def test_the_same_recording_gives_the_same_report(tmp_path: Path) -> None:
    first = quick(tmp_path)
    again = observe(study_of(TOP, **QUICK), tmp_path)
    assert first.rows == again.rows


def test_a_report_survives_its_file(tmp_path: Path) -> None:
    report = quick(tmp_path)
    assert ObservedReport.from_json(report.to_json()) == report
    with pytest.raises(UnusableInputError, match="expected schema 'observed 1'"):
        ObservedReport.from_json('{"schema": 1}')
    with pytest.raises(UnusableInputError, match="not a report on traffic"):
        ObservedReport.from_json("[]")


def test_messages_without_labels_are_left_out_and_counted(tmp_path: Path) -> None:
    quick(tmp_path)
    for path in (tmp_path / "labels" / "round-0001").glob("client-[01].json"):
        path.unlink()
    report = observe(study_of(TOP, **QUICK), tmp_path)
    assert report.without_labels == 2
    assert report.rows[0].messages == 4
    assert any("2 messages have no labels recorded" in line for line in remarks(report))
    # The server saw the whole sum, whoever wrote labels.
    [cohort] = report.of_view("cohort")
    assert cohort.cohort == (3, 3)


def test_without_any_labels_it_says_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(UnusableInputError, match=r"record_labels.*gradguard scan"):
        quick(tmp_path, labelled=False)


def test_few_messages_are_said_to_be_few(tmp_path: Path) -> None:
    report = quick(tmp_path, clients=1, rounds=1)
    [row] = report.rows
    assert (row.independent, row.worst.ci) == (1, (0.0, 1.0))
    assert row.verdict != LEAKS
    assert any("the least on 1" in line for line in remarks(report))


@pytest.mark.parametrize(
    ("deployed", "claimed"), [(TOP, NONE), (NONE, TOP), (LOUD, NONE), (SIGN, TOP)]
)
def test_a_client_unlike_the_simulated_one_is_noticed(
    tmp_path: Path, deployed: Defense, claimed: Defense
) -> None:
    federate(tmp_path, bench_of(study_of(deployed)), deployed, clients=4, rounds=2)
    report = observe(study_of(claimed, **QUICK), tmp_path)
    assert report.rows[0].alarming
    assert any(line.startswith("Warning: ") for line in remarks(report))
    assert all(row.verdict in (LEAKS, NOT_MEASURED) for row in report.of_view("all"))


def test_other_local_training_than_the_studys_is_noticed(tmp_path: Path) -> None:
    other = LocalTraining(epochs=10, learning_rate=0.5)
    federate(tmp_path, bench_of(study_of(TOP)), TOP, clients=4, rounds=1, training=other)
    [row] = observe(study_of(TOP, **QUICK), tmp_path).of_view("all")
    assert row.alarming
    assert "norm" in row.example


def test_a_low_rate_of_unlike_messages_is_never_called_safe(tmp_path: Path) -> None:
    federate(tmp_path, bench_of(study_of(LOUD)), LOUD, clients=4, rounds=2)
    report = observe(study_of(NONE, **QUICK), tmp_path)
    assert "leak" in closing(report) or closing(report).startswith("Not measured")
    assert "which is no proof" not in closing(report)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [-1.0, 1e-4])
def test_a_minority_unlike_the_rest_is_never_called_safe(tmp_path: Path, factor: float) -> None:
    """Four of fifty clients are undefended, and what they send is scaled or mirrored."""
    noisy = Defense("noisy", transform=AddGaussian(0.2))
    study = study_of(noisy, **QUICK)
    for folder, defense in (("seen", noisy), ("bare", NONE)):
        federate(tmp_path / folder, bench_of(study), defense, clients=50, rounds=1)
    for client in range(4):
        name = f"round-0001/client-{client}.safetensors"
        bare = load_file(tmp_path / "bare" / name)
        save_file({n: part * factor for n, part in bare.items()}, tmp_path / "seen" / name)
    report = observe(study, tmp_path / "seen")
    [row] = report.of_view("all")
    assert (row.unlike, row.verdict) == (4, NOT_MEASURED)
    assert "no proof" not in closing(report)
    assert any("4 of 50 messages" in line for line in remarks(report))


@pytest.mark.parametrize("seed", [5, 6, 7])
def test_a_defence_that_hides_everything_is_not_said_to_leak(tmp_path: Path, seed: int) -> None:
    deaf = Defense("deaf", transform=AddGaussian(10.0))
    report = quick(tmp_path, defense=deaf, clients=24, rounds=1, seed=seed)
    assert not closing(report).startswith("Labels leak")
    assert not report.rows[0].alarming


def test_a_model_that_noise_has_driven_off_leaks_and_only_traffic_shows_it(tmp_path: Path) -> None:
    """Gradients of huge weights stand out of any noise: at the fresh model nothing is read."""
    deaf = Defense("deaf", transform=AddGaussian(10.0))
    report = quick(tmp_path, defense=deaf, clients=8, rounds=4)
    first, *_, last = report.of_view("round")
    assert first.worst.advantage_ci[0] <= 0
    assert last.worst.advantage_ci[0] > 0
    assert closing(report).startswith("Labels leak")


def test_clients_of_several_sizes_are_each_read_with_their_own(tmp_path: Path) -> None:
    study = study_of(NONE, **QUICK)
    bench = bench_of(study)
    client = NONE.client(bench.fresh_model(0), training=study.client)
    recorder = Recorder(tmp_path)
    recorder.begin_round(1, client.model.state_dict())
    for index, size in enumerate((4, 8, 12)):
        [batch] = batches_of(bench, 1, size=size, seed=index)
        change = {name: -part for name, part in client(batch.inputs, batch.labels).items()}
        recorder.add(1, str(index), change, num_examples=8)
        record_labels(tmp_path, 1, str(index), batch.labels, classes=10)
    report = observe(study, tmp_path)
    assert report.rows[0].batch_sizes == (4, 12)
    assert report.rows[0].worst.asr > 0.7
    assert not report.rows[0].alarming
    assert "1 rounds have clients" in report.left_out["cohort"]
    assert any("2 messages came with another number of examples" in n for n in report.notes)
    assert any("4, 8, 12 examples are behind" in n for n in report.notes)


def test_of_several_compositions_attackers_expect_a_mixture(tmp_path: Path) -> None:
    study = study_of(TOP, **QUICK, compositions=("skewed", "iid"))
    federate(tmp_path, bench_of(study), TOP, clients=2, rounds=1)
    report = observe(study, tmp_path)
    assert any("a mixture of all" in note for note in report.notes)


def test_local_batches_in_random_order_are_simulated(tmp_path: Path) -> None:
    """The order that a recorded client drew is not known: no order is simulated twice."""
    shuffled = LocalTraining(epochs=2, learning_rate=0.1, batch_size=4)
    study = study_of(NONE, client=shuffled, **QUICK)
    bench = bench_of(study)
    recorder, model = Recorder(tmp_path), bench.fresh_model(0)
    client = NONE.client(model, training=shuffled)
    held = batches_of(bench, 4)
    for number in (1, 2):
        recorder.begin_round(number, model.state_dict())
        for index, batch in enumerate(held):
            change = {name: -part for name, part in client(batch.inputs, batch.labels).items()}
            recorder.add(number, str(index), change)
            record_labels(tmp_path, number, str(index), batch.labels, classes=10)
    report = observe(study, tmp_path)
    assert [row.alarming for row in report.rows if row.view in ("all", "pooled")] == [False, False]
    assert report.rows[0].worst.asr > 0.7


def test_a_cohort_that_the_server_saw_through_is_named(tmp_path: Path) -> None:
    summed = replace(TOP, cohort=3)
    report = quick(tmp_path, defense=summed)
    assert report.defense == "top-k"
    assert any("the cohort hid nothing" in line for line in remarks(report))


def test_which_of_several_defences_was_deployed_must_be_said(tmp_path: Path) -> None:
    study = study_of(TOP, NONE, **QUICK)
    federate(tmp_path, bench_of(study), TOP, clients=2, rounds=1)
    with pytest.raises(UnusableInputError, match="--defense with one of: top-k, none"):
        observe(study, tmp_path)
    with pytest.raises(UnusableInputError, match="did you mean 'top-k'"):
        observe(study, tmp_path, defense="topk")
    assert observe(study, tmp_path, defense="top-k").defense == "top-k"


def test_a_study_that_does_not_say_what_clients_do_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableInputError, match=r"the study has no \[client\]"):
        observe(study_of(TOP, client=None), tmp_path)
    private = Defense("dp", transform=[], dp=DPSGD(noise_multiplier=1.0, max_grad_norm=1.0))
    with pytest.raises(UnusableInputError, match="has dp, whose clients send gradients"):
        observe(study_of(private, client=None), tmp_path)


def test_too_few_simulated_messages_to_be_held_against_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableInputError, match="make it 50 or more"):
        observe(study_of(TOP, calibration=49), tmp_path)


def test_no_folder_no_recording_and_no_message_are_told_apart(tmp_path: Path) -> None:
    study = study_of(TOP)
    with pytest.raises(UnusableInputError, match="no such folder"):
        observe(study, tmp_path / "none")
    with pytest.raises(UnusableInputError, match="not a recording"):
        observe(study, tmp_path)
    Recorder(tmp_path)
    with pytest.raises(UnusableInputError, match="no message was recorded"):
        observe(study, tmp_path)


def _recorded(folder: Path, state: dict[str, torch.Tensor], *, classes: int = 10) -> None:
    recorder = Recorder(folder)
    recorder.begin_round(1, state)
    recorder.add(1, "a", {name: part * 0.1 for name, part in state.items()})
    record_labels(folder, 1, "a", torch.tensor([0, 1]), classes=classes)


def test_another_model_or_task_is_refused_by_name(tmp_path: Path) -> None:
    study = study_of(TOP, **QUICK)
    state = bench_of(study).fresh_model(0).state_dict()
    renamed = {name.replace("head", "haed"): part for name, part in state.items()}
    _recorded(tmp_path / "renamed", renamed)
    with pytest.raises(UnusableInputError, match=r"not the study's: .*'haed\.bias'; did you"):
        observe(study, tmp_path / "renamed")
    _recorded(tmp_path / "wider", dict(state) | {"head.bias": torch.ones(11)})
    with pytest.raises(UnusableInputError, match=r"'head.bias' has shape \(11,\)"):
        observe(study, tmp_path / "wider")
    _recorded(tmp_path / "shorter", {n: p for n, p in state.items() if n != "head.bias"})
    with pytest.raises(UnusableInputError, match=r"'head.bias' is missing"):
        observe(study, tmp_path / "shorter")
    _recorded(tmp_path / "fewer", dict(state), classes=7)
    with pytest.raises(UnusableInputError, match="counts of 7 classes, and the study's data has"):
        observe(study, tmp_path / "fewer")


def test_names_under_a_frameworks_prefix_are_the_models(tmp_path: Path) -> None:
    study = study_of(TOP, **QUICK)
    state = bench_of(study).fresh_model(0).state_dict()
    _recorded(tmp_path, {f"_module.{name}": part for name, part in state.items()})
    assert observe(study, tmp_path).messages == 1


def test_parameters_that_no_message_has_are_simulated_as_withheld(tmp_path: Path) -> None:
    study = study_of(TOP, **QUICK)
    state = bench_of(study).fresh_model(0).state_dict()
    recorder = Recorder(tmp_path)
    recorder.begin_round(1, state)
    recorder.add(1, "a", {n: 0.1 * p for n, p in state.items() if n != "head.bias"})
    record_labels(tmp_path, 1, "a", torch.tensor([0, 1]), classes=10)
    assert observe(study, tmp_path).messages == 1
    recorder.add(1, "b", {n: 0.1 * p for n, p in state.items()})
    with pytest.raises(UnusableInputError, match="some recorded messages have 'head"):
        observe(study, tmp_path)


def test_more_examples_than_the_study_has_images_are_refused(tmp_path: Path) -> None:
    study = study_of(TOP, **QUICK)
    state = bench_of(study).fresh_model(0).state_dict()
    recorder = Recorder(tmp_path)
    recorder.begin_round(1, state)
    recorder.add(1, "a", state)
    record_labels(tmp_path, 1, "a", torch.zeros(5000, dtype=torch.int64), classes=10)
    with pytest.raises(UnusableInputError, match="5000 examples are behind a recorded message"):
        observe(study, tmp_path)


class Impatient(Silent):
    """Ctrl-C when so many attackers were fitted."""

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def advance(self) -> None:
        self.patience -= 1
        if not self.patience:
            raise KeyboardInterrupt


def test_what_was_finished_before_ctrl_c_is_kept(tmp_path: Path) -> None:
    whole = quick(tmp_path)
    study = study_of(TOP, **QUICK)
    with pytest.raises(InterruptedObservationError) as interrupt:
        observe(study, tmp_path, progress=Impatient(6))
    kept = interrupt.value.report
    assert not kept.complete
    assert [row.messages for row in kept.rows][:1] == [3]
    assert "Interrupted: later rounds are missing." in remarks(kept)
    assert kept.rows[0].attacks == whole.of_view("round")[0].attacks
    with pytest.raises(KeyboardInterrupt) as early:
        observe(study, tmp_path, progress=Impatient(1))
    assert not isinstance(early.value, InterruptedObservationError)


def test_strangers_names_steer_no_page(tmp_path: Path) -> None:
    study = study_of(TOP, **QUICK)
    state = bench_of(study).fresh_model(0).state_dict()
    recorder = Recorder(tmp_path)
    recorder.begin_round(1, state)
    for client in ("<b>|@you", "\x1b[2J"):
        recorder.add(1, client, state)
        record_labels(tmp_path, 1, client, torch.tensor([0]), classes=10)
    page = render_observed(observe(study, tmp_path))
    assert "<b>" not in page
    assert "\x1b" not in page
    assert "| client &lt;b&gt;" in page
