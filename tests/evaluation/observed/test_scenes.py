"""What is attacked of a recording: alone, pooled, in cohorts; who shares a truth."""

from __future__ import annotations

from pathlib import Path

import torch

from gradguard.evaluation.observed.scenes import cohorts, pooled, scenes_of, single
from gradguard.evaluation.observed.traffic import Traffic, read_traffic
from gradguard.updates.recording import Recorder, record_labels

MODEL = {"head.weight": torch.zeros(3, 2)}


def traffic(folder: Path, sent: dict[tuple[int, str], list[int] | None]) -> Traffic:
    """Messages by round and client, with labels or without."""
    recorder = Recorder(folder)
    for number in sorted({number for number, _ in sent}):
        recorder.begin_round(number, {"head.weight": torch.full((3, 2), float(number))})
        for (of, client), labels in sent.items():
            if of == number:
                recorder.add(number, client, MODEL)
                if labels is not None:
                    record_labels(folder, number, client, torch.tensor(labels), classes=3)
    return read_traffic(folder)


def rounds_of(models: tuple[Path, ...]) -> list[str]:
    return [path.parent.name for path in models]


def test_alone_every_message_with_labels_is_a_target(tmp_path: Path) -> None:
    found = traffic(tmp_path, {(1, "a"): [0], (1, "b"): None, (2, "a"): [1], (2, "b"): [0, 2]})
    targets = single(found, remembers=False)
    assert [(t.messages[0].client, t.messages[0].round) for t in targets] == [
        *(("a", 1), ("a", 2), ("b", 2)),
    ]
    assert found.without_labels == 1
    assert [t.scene.batch_size for t in targets] == [1, 1, 2]
    assert [rounds_of(t.scene.models) for t in targets] == [
        *(["round-0001"], ["round-0002"], ["round-0002"]),
    ]
    assert len(list(scenes_of(targets))) == 3


def test_of_a_defence_that_remembers_a_clients_own_rounds_come_before(tmp_path: Path) -> None:
    """Those without labels too: the client's memory knows of them."""
    found = traffic(tmp_path, {(1, "a"): None, (2, "b"): [0], (3, "a"): [1]})
    targets = single(found, remembers=True)
    assert [rounds_of(t.scene.models) for t in targets] == [
        *(["round-0002"], ["round-0001", "round-0003"]),
    ]


def test_clients_with_the_same_labels_in_every_round_are_one_draw_each(tmp_path: Path) -> None:
    found = traffic(tmp_path, {(1, "a"): [0], (1, "b"): [0], (2, "a"): [0], (2, "b"): [0]})
    assert (list(found.repeating()), found.differing()) == (["a", "b"], ())
    assert len({t.cluster for t in single(found, remembers=False)}) == 2
    assert len({t.cluster for t in cohorts(found, remembers=False)[0]}) == 1


def test_a_client_with_new_labels_is_as_many_draws_and_others_are_not(tmp_path: Path) -> None:
    found = traffic(tmp_path, {(1, "a"): [0], (1, "b"): [0], (2, "a"): [1], (2, "b"): [0]})
    assert (list(found.repeating()), found.differing()) == (["b"], ("a",))
    assert len({t.cluster for t in single(found, remembers=False)}) == 3
    assert len({t.cluster for t in cohorts(found, remembers=False)[0]}) == 2


def test_one_label_of_one_message_changes_nothing_for_other_clients(tmp_path: Path) -> None:
    sent: dict[tuple[int, str], list[int] | None] = {
        (number, client): [0, 1] for number in (1, 2, 3) for client in "abc"
    }
    sent[3, "c"] = [0, 2]
    found = traffic(tmp_path, sent)
    assert len({t.cluster for t in single(found, remembers=False)}) == 4
    targets, why = pooled(found)
    assert [t.messages[0].client for t in targets] == ["a", "b"]
    assert why.startswith("the labels of 1 clients (c) differ from round to round")


def test_whether_a_batch_is_the_same_is_asked_of_each_client_and_its_past(tmp_path: Path) -> None:
    sent: dict[tuple[int, str], list[int] | None] = {
        (number, client): [0, 1] for number in (1, 2, 3) for client in "abc"
    }
    sent[3, "c"] = [0, 2]
    sent[1, "d"], sent[2, "d"] = None, [0, 1]
    found = traffic(tmp_path, sent)
    same = {
        (t.messages[0].client, t.messages[0].round): t.scene.same_data
        for t in single(found, remembers=True)
    }
    assert same["a", 3]
    assert same["c", 2]
    assert not same["c", 3]
    assert same["d", 2]  # of its first labels nothing is known: what most others did
    assert [t.scene.same_data for t in cohorts(found, remembers=True)[0]] == [False, True, False]
    assert all(t.scene.same_data for t in pooled(found)[0])


def test_pooling_asks_for_one_batch_and_says_so_where_there_is_none(tmp_path: Path) -> None:
    same = traffic(tmp_path / "same", {(1, "a"): [0, 1], (2, "a"): [1, 0], (2, "b"): [2, 2]})
    [target], why = pooled(same)
    assert ([m.round for m in target.messages], why) == ([1, 2], "")
    assert rounds_of(target.scene.models) == ["round-0001", "round-0002"]
    other = traffic(tmp_path / "other", {(1, "a"): [0], (2, "a"): [1]})
    assert pooled(other) == (
        [],
        "the labels of 1 clients (a) differ from round to round, and pooling, as in attack.rounds, "
        "is of messages about the same batch",
    )
    once = traffic(tmp_path / "once", {(1, "a"): [0], (1, "b"): [1]})
    assert pooled(once) == ([], "no client has two messages with labels")


def test_of_many_sets_of_rounds_the_commonest_are_pooled(tmp_path: Path) -> None:
    sent: dict[tuple[int, str], list[int] | None] = {}
    for client in range(12):
        for number in (1, client + 2):
            sent[number, str(client)] = [0]
    targets, why = pooled(traffic(tmp_path, sent))
    assert len(targets) == 8
    assert why == "4 clients took part in other rounds than most"


def test_a_cohort_is_a_rounds_mean_and_asks_those_with_labels(tmp_path: Path) -> None:
    found = traffic(tmp_path, {(1, "a"): [0], (1, "b"): None, (1, "c"): [1], (2, "a"): [0]})
    [target], why = cohorts(found, remembers=False)
    assert why == ""
    assert [m.client for m in target.messages] == ["a", "b", "c"]
    assert [m.client for m in target.asked] == ["a", "c"]
    assert target.scene.cohort == 3


def test_cohorts_of_unequal_clients_are_left_out_and_said(tmp_path: Path) -> None:
    found = traffic(tmp_path, {(1, "a"): [0], (1, "b"): [0, 1], (2, "a"): [0], (2, "b"): [1]})
    [target], why = cohorts(found, remembers=False)
    assert target.messages[0].round == 2
    assert why == "1 rounds have clients with different models or numbers of examples"
    lonely = traffic(tmp_path / "lonely", {(1, "a"): [0]})
    assert cohorts(lonely, remembers=False) == ([], "no round has messages of two clients")
