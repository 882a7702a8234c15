"""The folder of what a server saw: whole or refused, safe from names, lazy about tensors."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gradguard.updates.recording import Recorder, RecordingError, read_recording, record_labels
from gradguard.updates.recording_layout import (
    labels_file,
    message_file,
    reference_file,
    round_folder,
    round_number,
)

MODEL = {"head.weight": torch.arange(6.0).reshape(2, 3), "head.bias": torch.zeros(2)}
UPDATE = {"head.weight": torch.full((2, 3), 0.5), "head.bias": torch.tensor([0.0, -1.0])}


def recorded(folder: Path, *clients: str) -> Recorder:
    recorder = Recorder(folder)
    recorder.begin_round(1, MODEL)
    for client in clients:
        recorder.add(1, client, UPDATE)
    return recorder


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        t.dtype == other[n].dtype and torch.equal(t, other[n]) for n, t in one.items()
    )


def test_what_was_recorded_is_read_back_bitwise(tmp_path: Path) -> None:
    recorder = recorded(tmp_path / "seen")
    recorder.add(1, "7", UPDATE, bytes_sent=120, num_examples=8)
    recorder.begin_round(2, UPDATE)
    recorder.add(2, "9", MODEL)
    recording = read_recording(tmp_path / "seen")
    first, second = recording.rounds
    assert (first.number, second.number) == (1, 2)
    assert same(first.model(), MODEL)
    assert same(second.model(), UPDATE)
    [message] = first.messages
    assert (message.client, message.bytes_sent, message.num_examples) == ("7", 120, 8)
    assert same(message.update(), UPDATE)
    assert same(message.model(), MODEL)
    assert message.counts is None
    assert [m.round for m in recording.messages] == [1, 2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_every_entry_of_a_state_dict_can_be_recorded(tmp_path: Path, dtype: torch.dtype) -> None:
    shared = torch.ones(3, 2)
    model = {
        "scalar": torch.tensor(1).to(dtype),
        "empty": torch.zeros(0, 4).to(dtype),
        "tied": shared,
        "tied too": shared,
        "transposed": shared.t(),
    }
    recorder = Recorder(tmp_path)
    recorder.begin_round(0, model)
    recorder.add(0, "a", model)
    assert same(read_recording(tmp_path).messages[0].update(), model)


def test_a_model_with_buffers_is_recorded_whole(tmp_path: Path) -> None:
    state = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).state_dict()
    Recorder(tmp_path).begin_round(1, state)
    assert same(read_recording(tmp_path).rounds[0].model(), dict(state))


def test_what_is_given_is_neither_kept_nor_changed(tmp_path: Path) -> None:
    update = {name: part.clone() for name, part in UPDATE.items()}
    recorder = recorded(tmp_path)
    recorder.add(1, "a", update)
    assert same(update, UPDATE)
    update["head.bias"] += 1
    assert same(read_recording(tmp_path).messages[0].update(), UPDATE)


def test_a_client_may_have_had_a_model_of_its_own(tmp_path: Path) -> None:
    recorder = recorded(tmp_path, "a")
    recorder.add(1, "b", UPDATE, reference=UPDATE)
    first, second = read_recording(tmp_path).messages
    assert same(first.model(), MODEL)
    assert same(second.model(), UPDATE)
    with pytest.raises(RecordingError, match="no model of the round"):
        recorder.add(1, "c", UPDATE, reference={"head.bias": torch.zeros(2)})


def test_a_model_that_is_the_rounds_is_kept_once(tmp_path: Path) -> None:
    """Frameworks hand every client a copy: attackers are fitted for each model that is recorded."""
    model = MODEL | {"n": torch.tensor(3), "half": torch.ones(2, dtype=torch.bfloat16)}
    recorder = Recorder(tmp_path)
    recorder.begin_round(1, model)
    recorder.add(1, "a", UPDATE, reference={n: model[n].clone() for n in reversed(model)})
    for name in model:
        moved = model[name] + 1
        recorder.add(1, f"moved {name}", UPDATE, reference=model | {name: moved})
    first, *others = read_recording(tmp_path).messages
    paths = [message.model_path.name for message in others]
    assert first.model_path.name == "model.safetensors"
    assert "model.safetensors" not in paths
    assert len(set(paths)) == 4


def test_after_every_call_the_folder_is_a_recording(tmp_path: Path) -> None:
    """A process that is killed between two calls leaves all that came before."""
    recorder = Recorder(tmp_path)
    assert read_recording(tmp_path).rounds == ()
    recorder.begin_round(1, MODEL)
    assert read_recording(tmp_path).messages == ()
    for number, client in enumerate("abc", start=1):
        recorder.add(1, client, UPDATE)
        assert len(read_recording(tmp_path).messages) == number


def test_what_a_killed_process_left_half_done_is_not_read(tmp_path: Path) -> None:
    recorded(tmp_path, "a")
    (tmp_path / "round-0001" / ".abc.part").write_bytes(b"half")
    (tmp_path / "round-0001" / message_file("b")).write_bytes(b"not in the index yet")
    (tmp_path / "round-0002").mkdir()
    assert [m.client for m in read_recording(tmp_path).messages] == ["a"]


def test_a_restarted_server_goes_on_in_the_same_folder(tmp_path: Path) -> None:
    recorded(tmp_path, "a").refuse(1, "x", "truncated")
    again = Recorder(tmp_path)
    again.begin_round(1, MODEL)
    again.add(1, "b", UPDATE)
    again.begin_round(2, UPDATE)
    recording = read_recording(tmp_path)
    assert [m.client for m in recording.rounds[0].messages] == ["a", "b"]
    assert recording.rounds[0].refused == (("x", "truncated"),)


def test_a_server_that_was_killed_at_its_first_file_can_begin_again(tmp_path: Path) -> None:
    (tmp_path / ".abc.part").write_bytes(b"half")
    (tmp_path / "labels").mkdir()
    recorded(tmp_path, "a")
    assert len(read_recording(tmp_path).messages) == 1


def test_another_run_does_not_mix_into_a_recording(tmp_path: Path) -> None:
    recorded(tmp_path, "a")
    other = {name: part + 1 for name, part in MODEL.items()}
    with pytest.raises(RecordingError, match="another model; give a new folder"):
        Recorder(tmp_path).begin_round(1, other)
    assert len(read_recording(tmp_path).messages) == 1


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("work of years")
    with pytest.raises(RecordingError, match=r"holds 'thesis\.tex' and no recording"):
        Recorder(tmp_path)
    (tmp_path / "thesis.tex").rename(tmp_path / "index.json")
    with pytest.raises(RecordingError, match="cannot be read as JSON"):
        Recorder(tmp_path)


def test_a_folder_that_cannot_be_made_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RecordingError, match="cannot be written to"):
        Recorder(tmp_path / "file" / "seen")


BAD = [
    ({}, "must have an entry"),
    ({"head.bias": torch.tensor([float("nan"), 0.0])}, "'head.bias' holds NaN"),
    ({"head.bias": torch.tensor([float("inf"), 0.0])}, "NaN or infinity"),
    ({"head.bias": torch.zeros(3)}, r"of shape \(3,\); in the model of the round it has \(2,\)"),
    ({"tail.bias": torch.zeros(2)}, "sent 'tail.bias', which the model of the round lacks"),
    ({"head.bias": torch.zeros(2, dtype=torch.complex64)}, "dense and real"),
    ({"head.bias": torch.zeros(2).to_sparse()}, "dense and real"),
    ({"__metadata__": torch.zeros(2)}, "none that is called '__metadata__'"),
    ({"head.bias": [0.0, 0.0]}, "expected tensors by name"),
]


@pytest.mark.parametrize(("update", "words"), BAD)
def test_a_message_that_is_none_raises_and_changes_nothing(
    tmp_path: Path, update: dict[str, Tensor], words: str
) -> None:
    recorder = recorded(tmp_path, "a")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(RecordingError, match=words):
        recorder.add(1, "b", update)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    recorder.refuse(1, "b", words)
    assert read_recording(tmp_path).rounds[0].refused[0][0] == "b"


@pytest.mark.parametrize("value", [-1, 1.5, True, "8", 2**63])
def test_numbers_beside_a_message_are_whole(tmp_path: Path, value: object) -> None:
    recorder = recorded(tmp_path)
    for name in ("bytes_sent", "num_examples"):
        with pytest.raises(RecordingError, match=f"{name} must be a whole number"):
            recorder.add(1, "a", UPDATE, **{name: value})  # type: ignore[arg-type]


def test_calls_out_of_order_raise(tmp_path: Path) -> None:
    recorder = recorded(tmp_path, "a")
    with pytest.raises(RecordingError, match="round 2 was not begun"):
        recorder.add(2, "a", UPDATE)
    with pytest.raises(RecordingError, match="round 2 was not begun"):
        recorder.refuse(2, "a", "why")
    with pytest.raises(RecordingError, match="'a' has a message in round 1 already"):
        recorder.add(1, "a", UPDATE)
    for number in (-1, 10**6 + 1, 1.0, True):
        with pytest.raises(RecordingError, match="a round is a whole number"):
            recorder.begin_round(number, MODEL)  # type: ignore[arg-type]
    for client in ("", 7, "x" * 1025):
        with pytest.raises(RecordingError, match="a client's name must be text"):
            recorder.add(1, client, UPDATE)  # type: ignore[arg-type]


@given(name=st.text(min_size=1, max_size=80), other=st.text(min_size=1, max_size=80))
def test_any_name_is_one_plain_file_and_no_two_names_share_one(name: str, other: str) -> None:
    for file_of in (message_file, reference_file, labels_file):
        file = file_of(name)
        assert Path(file).name == file
        assert not file.startswith(".")
        assert file.isascii()
        assert file == file.lower()
        assert len(file) < 100
        assert (file.casefold() == file_of(other).casefold()) == (name == other)
    assert len({message_file(name), reference_file(name), message_file(other)}) == 2 + (
        name != other
    )


@settings(max_examples=20)
@given(number=st.integers(0, 10**6))
def test_round_folders_read_back(number: int) -> None:
    assert round_number(round_folder(number)) == number
    assert round_number("round-1") is None
    assert round_number("round-00001") is None


@pytest.mark.parametrize("client", ["../../escape", "/etc/passwd", "a/b", "\x00", "ünïcode", "A"])
def test_names_of_strangers_stay_in_the_folder(tmp_path: Path, client: str) -> None:
    recorded(tmp_path / "seen", client)
    record_labels(tmp_path / "seen", 1, client, torch.tensor([1]), classes=2)
    [message] = read_recording(tmp_path / "seen").messages
    assert (message.client, message.counts) == (client, (0, 1))
    assert [path.name for path in tmp_path.iterdir()] == ["seen"]


def test_labels_may_come_before_the_server_and_are_counted(tmp_path: Path) -> None:
    record_labels(tmp_path, 1, "a", torch.tensor([2, 0, 2]), classes=4)
    record_labels(tmp_path, 5, "nobody", torch.tensor([0]), classes=4)
    recorded(tmp_path, "a", "b")
    recording = read_recording(tmp_path)
    assert [m.counts for m in recording.messages] == [(1, 0, 2, 0), None]
    assert recording.stray_labels == 1


def test_a_client_that_trains_a_round_again_writes_its_labels_anew(tmp_path: Path) -> None:
    recorded(tmp_path, "a")
    for label in (0, 1):
        record_labels(tmp_path, 1, "a", torch.tensor([label]), classes=2)
    assert read_recording(tmp_path).messages[0].counts == (0, 1)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.tensor([0, 3]), "lie in"),
        (torch.tensor([-1]), "lie in"),
        (torch.tensor([], dtype=torch.int64), "at least one"),
        (torch.tensor([0.0]), "must be integers"),
        (torch.tensor([True]), "must be integers"),
    ],
)
def test_labels_that_are_none_raise(tmp_path: Path, labels: Tensor, words: str) -> None:
    with pytest.raises(RecordingError, match=words):
        record_labels(tmp_path, 1, "a", labels, classes=3)
    assert not (tmp_path / "labels").exists()


def _write_labels(folder: Path, start: int) -> None:
    for client in range(start, start + 20):
        record_labels(folder, 1, str(client % 30), torch.tensor([client % 3]), classes=3)


@pytest.mark.slow
def test_clients_write_their_labels_at_the_same_time(tmp_path: Path) -> None:
    recorded(tmp_path, *[str(client) for client in range(30)])
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_labels, args=(tmp_path, s)) for s in (0, 10)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    messages = read_recording(tmp_path).messages
    assert all(m.counts is not None and m.counts[int(m.client) % 3] == 1 for m in messages)
    assert not list(tmp_path.rglob("*.part"))


def test_no_such_folder_and_no_recording_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="no such folder"):
        read_recording(tmp_path / "none")
    with pytest.raises(RecordingError, match=r"not a recording, for it has no index\.json"):
        read_recording(tmp_path)


def _change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


DAMAGE = [
    ("index.json", {"format": 2}, "of format 2, expected 1"),
    ("round-0001/index.json", {"round": 2}, "that of round 2"),
    ("round-0001/index.json", {"messages": None}, "damaged index"),
    ("round-0001/index.json", {"messages": [{}]}, "damaged index"),
    ("round-0001/index.json", {"refused": [{"client": "a"}]}, "damaged index"),
    ("labels/round-0001/client-a.json", {"client": "b"}, "not the labels of client 'a'"),
    ("labels/round-0001/client-a.json", {"round": 2}, "not the labels"),
    ("labels/round-0001/client-a.json", {"counts": [1, -1]}, "not the labels"),
    ("labels/round-0001/client-a.json", {"counts": [0.5]}, "not the labels"),
    ("labels/round-0001/client-a.json", {"counts": [0, 0]}, "of no example"),
]


@pytest.mark.parametrize(("file", "values", "words"), DAMAGE)
def test_a_damaged_index_raises_with_its_path(
    tmp_path: Path, file: str, values: dict[str, object], words: str
) -> None:
    recorded(tmp_path, "a")
    record_labels(tmp_path, 1, "a", torch.tensor([0]), classes=2)
    _change(tmp_path / file, **values)
    with pytest.raises(RecordingError, match=words) as raised:
        read_recording(tmp_path)
    assert file in str(raised.value)


def test_an_index_names_no_file_of_its_own(tmp_path: Path) -> None:
    """A client in it is a name, from which alone the file follows."""
    recorded(tmp_path, "a")
    index = tmp_path / "round-0001" / "index.json"
    entry = {"client": "../client-a", "bytes_sent": None, "num_examples": None}
    _change(index, messages=[entry | {"own_reference": False}])
    with pytest.raises(RecordingError, match="hashed-"):
        read_recording(tmp_path)
    _change(index, messages=[entry | {"client": "a", "own_reference": False}] * 2)
    with pytest.raises(RecordingError, match="listed twice"):
        read_recording(tmp_path)


@pytest.mark.parametrize("file", ["model.safetensors", "client-a.safetensors"])
def test_a_file_that_was_cut_short_is_found_when_it_is_read(tmp_path: Path, file: str) -> None:
    recorded(tmp_path, "a")
    path = tmp_path / "round-0001" / file
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(RecordingError, match="missing or damaged"):
        read_recording(tmp_path)
    path.unlink()
    with pytest.raises(RecordingError, match="missing or damaged"):
        read_recording(tmp_path)


def test_values_are_read_late_and_checked_then(tmp_path: Path) -> None:
    recorded(tmp_path, "a")
    path = tmp_path / "round-0001" / message_file("a")
    content = bytearray(path.read_bytes())
    content[-4:] = b"\x00\x00\xc0\x7f"  # NaN
    path.write_bytes(bytes(content))
    [message] = read_recording(tmp_path).messages
    with pytest.raises(RecordingError, match="holds NaN or infinity"):
        message.update()


def test_a_message_of_another_model_is_found(tmp_path: Path) -> None:
    recorded(tmp_path, "a")
    other = Recorder(tmp_path / "other")
    other.begin_round(1, {"w": torch.zeros(1)})
    other.add(1, "a", {"w": torch.zeros(1)})
    file = f"round-0001/{message_file('a')}"
    (tmp_path / file).write_bytes((tmp_path / "other" / file).read_bytes())
    with pytest.raises(RecordingError, match="'w', which the model of the round lacks"):
        read_recording(tmp_path)


def test_a_link_or_a_pipe_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    for what in ("link", "pipe", "linked folder"):
        folder = tmp_path / what
        recorder = Recorder(folder)
        recorder.begin_round(1, {"w": torch.zeros(2)})
        recorder.add(1, "a", {"w": torch.zeros(2)})
        file = next((folder / "round-0001").glob("client-*"))
        if what == "linked folder":
            (folder / "round-0001").rename(tmp_path / "elsewhere")
            (folder / "round-0001").symlink_to(tmp_path / "elsewhere")
        elif what == "pipe":
            file.unlink()
            os.mkfifo(file)
        else:
            file.rename(tmp_path / "outside")
            file.symlink_to(tmp_path / "outside")
        with pytest.raises(RecordingError, match="no plain file"):
            read_recording(folder)


def test_a_folder_that_is_itself_a_link_is_read(tmp_path: Path) -> None:
    Recorder(tmp_path / "real").begin_round(1, {"w": torch.zeros(2)})
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert len(read_recording(tmp_path / "link").rounds) == 1
    assert Recorder(tmp_path / "link").folder == tmp_path / "real"


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("labels", {"counts": "@" + "9" * 5000}),
        ("index", {"messages": {}}),
        ("index", {"refused": {}}),
        ("index", {"format": True}),
    ],
)
def test_other_types_than_were_written_are_refused(
    tmp_path: Path, file: str, change: dict[str, object]
) -> None:
    recorder = Recorder(tmp_path)
    recorder.begin_round(1, {"w": torch.zeros(2)})
    recorder.add(1, "a", {"w": torch.zeros(2)})
    record_labels(tmp_path, 1, "a", torch.tensor([0, 1]), classes=2)
    where = "labels/round-0001" if file == "labels" else "round-0001"
    path = next((tmp_path / where).glob("*.json"))
    text = json.dumps(json.loads(path.read_text()) | change)
    # A number with more digits than Python reads.
    path.write_text(re.sub('"@(9+)"', r"[\1]", text))
    with pytest.raises(RecordingError):
        read_recording(tmp_path)
