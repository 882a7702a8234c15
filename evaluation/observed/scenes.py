"""What is attacked: single messages, a client's messages pooled, the sum of a round's clients.

A scene is what one set of attackers is fitted for; its targets are recorded observations of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gradguard.evaluation.observed.traffic import Traffic, size_of
from gradguard.evaluation.views.placing import short
from gradguard.updates.recorded import RecordedMessage

ALONE, POOLED, COHORT = "alone", "pooled", "cohort"
MOST_POOLED = 8
"""Sets of rounds for which attackers are fitted: of clients that come and go each has its own."""


@dataclass(frozen=True)
class Scene:
    """One kind of observation, which attackers are fitted for.

    Args:
        kind: ``"alone"``, ``"pooled"`` or ``"cohort"``.
        models: What the client was sent, round by round; the last is the model attackers know.
            Of a message alone, the rounds before its own are there if the defence remembers them.
        batch_size: Examples behind every message.
        cohort: How many clients' messages are in the mean.
        same_data: Whether the client held the same batch in all of these rounds.
    """

    kind: str
    models: tuple[Path, ...]
    batch_size: int
    cohort: int = 1
    same_data: bool = False


@dataclass(frozen=True, eq=False)
class Target:
    """One recorded observation: the mean of some messages, and whose labels are asked for.

    Args:
        messages: What the mean is taken of.
        asked: Those of them whose labels are recorded, and scored.
        cluster: The same for observations whose truths are one and the same draw.
    """

    scene: Scene
    messages: tuple[RecordedMessage, ...]
    asked: tuple[RecordedMessage, ...]
    cluster: Hashable


def single(traffic: Traffic, *, remembers: bool) -> list[Target]:
    """Every message by itself."""
    return [
        Target(
            _scene(traffic, ALONE, (message,), remembers=remembers),
            *((message,), (message,)),
            _cluster(message),
        )
        for message in traffic.sent
    ]


def pooled(traffic: Traffic) -> tuple[list[Target], str]:
    """Each client's messages as one observation, and why there are none, or not of all.

    The truth is that of a study's ``rounds``: all messages of a client come from the same batch,
    whose labels are asked for.
    """
    same, why = traffic.repeating(), _differing(traffic)
    if not same:
        return [], "; ".join(why) or "no client has two messages with labels"
    groups: dict[Scene, list[Target]] = defaultdict(list)
    for own in same.values():
        models = tuple(m.model_path for m in own)
        scene = Scene(POOLED, models, size_of(own[0]), same_data=True)
        groups[scene].append(Target(scene, tuple(own), (own[0],), _cluster(own[0])))
    ranked = sorted(groups.values(), key=len, reverse=True)
    kept = [target for group in ranked[:MOST_POOLED] for target in group]
    left = len(same) - len(kept)
    if left:
        why.append(f"{left} clients took part in other rounds than most")
    return kept, "; ".join(why)


def _differing(traffic: Traffic) -> list[str]:
    """Who is not pooled and why, where there is someone."""
    clients = traffic.differing()
    if not clients:
        return []
    named = ", ".join(short(client) for client in clients[:5])
    return [
        f"the labels of {len(clients)} clients ({named}{', ...' if len(clients) > 5 else ''}) "
        "differ from round to round, and pooling, as in attack.rounds, is of messages about the "
        "same batch"
    ]


def cohorts(traffic: Traffic, *, remembers: bool) -> tuple[list[Target], str]:
    """The mean of all messages of each round, and why there are none, or not of all."""
    found, mixed = [], 0
    for one in traffic.recording.rounds:
        asked = tuple(m for m in one.messages if m.counts is not None)
        if len(one.messages) < 2 or not asked:
            continue
        if len({size_of(m) for m in asked}) > 1 or len({m.model_path for m in one.messages}) > 1:
            mixed += 1
            continue
        scene = _scene(traffic, COHORT, asked, remembers=remembers, cohort=len(one.messages))
        together = frozenset(_cluster(m) for m in asked)
        found.append(Target(scene, one.messages, asked, together))
    why = f"{mixed} rounds have clients with different models or numbers of examples"
    if not found:
        return [], why if mixed else "no round has messages of two clients"
    return found, why if mixed else ""


def scenes_of(targets: list[Target]) -> Iterator[tuple[Scene, list[Target]]]:
    """Every scene once, with its targets, in the order in which they come."""
    groups: dict[Scene, list[Target]] = defaultdict(list)
    for target in targets:
        groups[target.scene].append(target)
    yield from groups.items()


def _scene(
    traffic: Traffic,
    kind: str,
    asked: tuple[RecordedMessage, ...],
    *,
    remembers: bool,
    cohort: int = 1,
) -> Scene:
    models = _models(traffic, asked[0], remembers=remembers)
    # Of one model nothing depends on it: scenes that are alike must be equal.
    same = len(models) > 1 and all(traffic.same_until(message) for message in asked)
    return Scene(kind, models, size_of(asked[0]), cohort, same)


def _models(traffic: Traffic, message: RecordedMessage, *, remembers: bool) -> tuple[Path, ...]:
    if not remembers:
        return (message.model_path,)
    own = traffic.rounds_of(message.client)
    return tuple(m.model_path for m in own if m.round <= message.round)


def _cluster(message: RecordedMessage) -> Hashable:
    """A client's messages about the same labels are taken for ones about the same batch."""
    return message.client, message.counts
