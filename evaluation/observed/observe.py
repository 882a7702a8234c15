"""Attack what a real server saw: ``gradguard evaluate STUDY --observed FOLDER``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gradguard import Defense
from gradguard.evaluation.data import Data
from gradguard.evaluation.errors import UnusableInputError, unknown
from gradguard.evaluation.models import Factory
from gradguard.evaluation.observed.attacking import SceneScores, attack_scene, check_withheld
from gradguard.evaluation.observed.result import ObservedReport
from gradguard.evaluation.observed.rows import rows_of
from gradguard.evaluation.observed.scenes import Target, cohorts, pooled, scenes_of, single
from gradguard.evaluation.observed.simulated import Simulation, remembers
from gradguard.evaluation.observed.summary import notes_of, provenance_of
from gradguard.evaluation.observed.traffic import (
    Traffic,
    check_classes,
    load_model,
    read_traffic,
    seen,
)
from gradguard.evaluation.progress import Progress, Silent
from gradguard.evaluation.running.bench import Bench, prepare
from gradguard.evaluation.running.pool import one_thread
from gradguard.evaluation.study import Study

LEAST_CALIBRATION = 50
"""Simulated messages below which too many recorded ones are unlike all of them by chance.

Of 100 messages of an honest client 10 were unlike 20 simulated ones, and 1 was unlike 50.
"""


class InterruptedObservationError(KeyboardInterrupt):
    """Ctrl-C; ``report`` holds what was finished."""

    def __init__(self, report: ObservedReport) -> None:
        super().__init__("interrupted")
        self.report = report


def observe(
    study: Study,
    folder: Path,
    *,
    defense: str | None = None,
    data: Data | None = None,
    factory: Factory | None = None,
    progress: Progress | None = None,
    command: Sequence[str] = (),
) -> ObservedReport:
    """Attack the messages in a recording, with their recorded labels as the truth.

    Attackers are those of :func:`gradguard.evaluation.evaluate`, told what the server knows: the
    model of the round, the batch size, the local training, the defence. They rehearse with the
    study's client at the recorded models, and never see a recorded message before they are scored
    on it. Five views: every message by itself, over all rounds, by round and by client; each
    client's messages pooled; the mean of all messages of a round, where one client's labels are
    asked for, as with a defence's ``cohort``.

    Guarantees:

    - recorded messages and labels have no part in fitting attackers or in choosing the worst;
    - messages without recorded labels are left out and counted;
    - a client's messages about the same labels count as one where intervals are made;
    - where recorded messages are unlike simulated ones, no low rate is called safe;
    - the same study, recording and seed give the same result on the same machine.

    Not guaranteed: that clients hold none of the study's auxiliary images, which only whoever
    runs the clients can know; that labels which clients recorded are right; or that batches of
    one client whose labels differ a little are draws of their own, for which they are taken. The
    row of one client is about its data alone: there every message counts as one, whatever its
    labels, and the interval says what more messages about these data would show.

    Args:
        study: With ``client``, the local training of the recorded clients. Batch sizes, rounds
            and models are those that were recorded.
        folder: What a :class:`gradguard.updates.recording.Recorder` wrote.
        defense: The name of the one that was deployed, where the study has several.
        data, factory: As of :func:`gradguard.evaluation.evaluate`.
        progress: Told what is being done; silent when not given.
        command: Recorded in the report.

    Raises:
        UnusableInputError: The recording or the study cannot be used, or they do not fit.
        InterruptedObservationError: Ctrl-C after the first round was done.

    >>> import tempfile
    >>> from gradguard import LocalTraining
    >>> from gradguard.evaluation import AttackSpec, ModelSpec
    >>> from gradguard.updates.recording import Recorder, record_labels
    >>> study = Study(
    ...     (Defense("none", transform=[]),),
    ...     model=ModelSpec(name="mlp"),
    ...     attack=AttackSpec(attackers=("NegativeColumns",)),
    ...     client=LocalTraining(epochs=1, learning_rate=0.1),
    ... )
    >>> bench = prepare(study)
    >>> client = study.defenses[0].client(bench.fresh_model(0), training=study.client)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     recorder = Recorder(folder)
    ...     recorder.begin_round(1, client.model.state_dict())
    ...     for name, index in (("a", 0), ("b", 8)):
    ...         images, labels = bench.data.take(bench.parts.scored[index : index + 8])
    ...         change = {n: -part for n, part in client(images, labels).items()}
    ...         recorder.add(1, name, change)
    ...         record_labels(folder, 1, name, labels, classes=10)
    ...     found = observe(study, Path(folder)).rows[0]
    >>> found.view, found.messages, found.worst_attack, found.worst.asr > found.blind_asr
    ('all', 2, 'NegativeColumns', True)
    """
    progress = Silent() if progress is None else progress
    started = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    chosen = deployed(study, defense)
    traffic = read_traffic(folder)
    study = replace(study, defenses=(replace(chosen, cohort=1),))
    with one_thread():
        bench = prepare(study, data=data, factory=factory)
        check_classes(traffic, bench.data.num_classes)
        _check_room(bench, traffic)
        simulation = _simulation(bench, study.defenses[0], traffic)
        targets, left_out = _targets(traffic, study.defenses[0], bench)
        found: list[SceneScores] = []

        def report(*, complete: bool) -> ObservedReport:
            return _report(
                *(study, chosen, traffic, bench, found, left_out),
                complete=complete,
                provenance=provenance_of(bench, traffic, command, *started),
            )

        scenes = list(scenes_of(targets))
        progress.begin(len(scenes) * len(bench.attacks))
        try:
            for scene, of_scene in scenes:
                found.append(attack_scene(simulation, scene, of_scene, progress))
        except KeyboardInterrupt as interrupt:
            if not found:
                raise
            raise InterruptedObservationError(report(complete=False)) from interrupt
        return report(complete=True)


def deployed(study: Study, name: str | None) -> Defense:
    """The defence that was deployed, checked to be one that can be simulated.

    Raises:
        UnusableInputError: It is not clear which, or the study does not say what clients do.
    """
    named = {defense.name: defense for defense in study.defenses}
    if name is None and len(named) > 1:
        raise UnusableInputError(
            f"which defence was deployed? Say --defense with one of: {', '.join(named)}"
        )
    if name is not None and name not in named:
        raise unknown("defence", name, named)
    chosen = study.defenses[0] if name is None else named[name]
    if chosen.dp is not None:
        raise UnusableInputError(
            f"defence {chosen.name!r} has dp, whose clients send gradients; recorded are changes "
            "of a model, and local training under DP-SGD cannot be simulated. Give the same "
            "defence as transforms, ClipByGlobalNorm and AddGaussian, where clients run ClientDP"
        )
    if study.attack.calibration < LEAST_CALIBRATION:
        raise UnusableInputError(
            f"attack.calibration is {study.attack.calibration}: recorded messages are held against "
            f"so many simulated ones; make it {LEAST_CALIBRATION} or more"
        )
    if study.client is None:
        raise UnusableInputError(
            "the study has no [client], and recorded are changes of a model by local training: "
            "add [client] with the clients' epochs, learning_rate and batch_size"
        )
    return chosen


def _check_room(bench: Bench, traffic: Traffic) -> None:
    most = max(traffic.batch_sizes)
    room = min(len(bench.parts.calibration), len(bench.parts.auxiliary))
    if most > room:
        raise UnusableInputError(
            f"{most} examples are behind a recorded message, and the study has only {room} images "
            "to simulate such a client with; give it more data"
        )


def _simulation(bench: Bench, defense: Defense, traffic: Traffic) -> Simulation:
    """Checked against every recorded model, and every message's names and shapes."""
    model = bench.fresh_model(0)
    paths = {message.model_path: message for message in traffic.recording.messages}
    for path in paths:
        load_model(model, path)
    withheld: tuple[str, ...] | None = None
    for message in traffic.recording.messages:
        _, lacks = seen(message, model)
        withheld = lacks if withheld is None else withheld
        check_withheld(str(message.path), lacks, withheld)
    return Simulation(bench, defense, withheld or (), kept=max(1, len(paths)))


def _targets(
    traffic: Traffic, defense: Defense, bench: Bench
) -> tuple[list[Target], dict[str, str]]:
    memory = remembers(defense, bench.fresh_model(0))
    over_rounds, why_rounds = pooled(traffic)
    summed, why_summed = cohorts(traffic, remembers=memory)
    reasons = {"pooled": why_rounds, "cohort": why_summed}
    targets = [*single(traffic, remembers=memory), *over_rounds, *summed]
    return targets, {view: why for view, why in reasons.items() if why}


def _report(
    study: Study,
    chosen: Defense,
    traffic: Traffic,
    bench: Bench,
    found: Sequence[SceneScores],
    left_out: dict[str, str],
    *,
    complete: bool,
    provenance: dict[str, Any],
) -> ObservedReport:
    messages = traffic.recording.messages
    return ObservedReport(
        study=study.to_dict(),
        defense=chosen.name,
        rows=rows_of(found, seed=bench.seed("observed intervals")),
        left_out=left_out,
        rounds=len({message.round for message in messages}),
        clients=len({message.client for message in messages}),
        messages=len(messages),
        without_labels=traffic.without_labels,
        refused=traffic.refused,
        notes=tuple(notes_of(chosen, traffic, bench)),
        complete=complete,
        provenance=provenance,
    )
