"""From scores of single observations to rows: by round, by client, pooled, of cohorts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from gradguard.evaluation.attackers import BLIND
from gradguard.evaluation.decisions.playing import BASELINE_NAMES
from gradguard.evaluation.metrics import advantage
from gradguard.evaluation.observed.attacking import SceneScores
from gradguard.evaluation.observed.intervals import Clustered
from gradguard.evaluation.observed.result import ObservedRow, ObservedScore
from gradguard.evaluation.observed.scenes import ALONE, Target
from gradguard.evaluation.running.rows import worst_attack
from gradguard.evaluation.views.sentences import NOTICEABLE

# Of how many messages at most Likeness says by chance that they are unlike, and beyond which
# chance the whole is no chance.
BY_CHANCE, ALARM = 5, 0.05
# Of few simulated messages that chance excuses nearly any share: of 20, it would 43 in 100. Yet no
# attacker was fitted for a message unlike all of them, so that it may be read whole, and a share
# above NOTICEABLE may alone be a noticeable advantage. Of honest messages about one in a hundred
# is unlike 50 simulated ones.
TOLERATED = NOTICEABLE


@dataclass(frozen=True, eq=False)
class _Part:
    """Some of the targets of one scene."""

    scores: SceneScores
    chosen: np.ndarray

    @property
    def targets(self) -> list[Target]:
        return [self.scores.targets[i] for i in self.chosen]

    @property
    def unlike(self) -> list[tuple[str, ...]]:
        return [self.scores.unlike[i] for i in self.chosen]

    @property
    def simulated(self) -> int:
        return len(next(iter(self.scores.calibration.values())))


def rows_of(found: Sequence[SceneScores], *, seed: int) -> tuple[ObservedRow, ...]:
    """All rows, by view."""
    alone = [scores for scores in found if scores.targets[0].scene.kind == ALONE]
    rows = []
    if alone:
        rows.append(_row("all", "", alone, lambda target: True, seed, own_data=False))
        rounds = sorted({t.messages[0].round for s in alone for t in s.targets})
        for number in rounds if len(rounds) > 1 else ():
            rows.append(_row("round", str(number), alone, _in_round(number), seed, own_data=False))
        clients = dict.fromkeys(t.messages[0].client for s in alone for t in s.targets)
        for client in clients if len(clients) > 1 else ():
            rows.append(_row("client", client, alone, _of_client(client), seed, own_data=True))
    for view in ("pooled", "cohort"):
        of_view = [scores for scores in found if scores.targets[0].scene.kind == view]
        if of_view:
            rows.append(_row(view, "", of_view, lambda target: True, seed, own_data=False))
    return tuple(rows)


def _in_round(number: int) -> Callable[[Target], bool]:
    return lambda target: target.messages[0].round == number


def _of_client(client: str) -> Callable[[Target], bool]:
    return lambda target: target.messages[0].client == client


def _row(
    view: str,
    of: str,
    found: Sequence[SceneScores],
    belongs: Callable[[Target], bool],
    seed: int,
    *,
    own_data: bool,
) -> ObservedRow:
    """One row.

    Args:
        own_data: It is about the data of one client, of which each message is another look.
    """
    parts = [_Part(s, np.flatnonzero([belongs(t) for t in s.targets])) for s in found]
    parts = [part for part in parts if len(part.chosen)]
    skipped = {name: why for part in parts for name, why in part.scores.skipped.items()}
    names = [name for name in parts[0].scores.scored if name not in skipped]
    scored = {
        n: np.concatenate([part.scores.scored[n][part.chosen] for part in parts]) for n in names
    }
    targets = [target for part in parts for target in part.targets]
    clusters = range(len(targets)) if own_data else [target.cluster for target in targets]
    looking = [name for name in names if name not in BASELINE_NAMES]
    intervals = Clustered(list(clusters), seed)
    together = replace(intervals, among=max(1, len(looking)))
    calibration = {name: _calibration(name, parts) for name in names}
    odd = ["; ".join(words) for part in parts for words in part.unlike if words]
    sizes = [target.scene.batch_size for target in targets]
    cohorts = [target.scene.cohort for target in targets]
    return ObservedRow(
        view=view,
        of=of,
        messages=len(targets),
        independent=intervals.number,
        batch_sizes=(min(sizes), max(sizes)),
        cohort=(min(cohorts), max(cohorts)),
        attacks={name: _score(scored[name], scored[BLIND], intervals, together) for name in names},
        skipped=skipped,
        # Blind baselines only where nothing else was mounted, and so nothing was measured.
        worst_attack=worst_attack({n: calibration[n] for n in looking or names}),
        blind_asr=float(scored[BLIND].mean()),
        unlike=len(odd),
        example=odd[0] if odd else "",
        alarming=len(odd) > TOLERATED * len(targets)
        or is_alarming(
            # Of messages about the same labels all are unlike or none.
            -(-len(odd) * intervals.number // len(targets)),
            intervals.number,
            min(part.simulated for part in parts),
        ),
    )


def _calibration(name: str, parts: Sequence[_Part]) -> np.ndarray:
    """Mean success on simulated messages, every scene counting as often as it has targets."""
    means = [float(part.scores.calibration[name].mean()) for part in parts]
    return np.array([np.average(means, weights=[len(part.chosen) for part in parts])])


def _score(
    scores: np.ndarray, blind: np.ndarray, intervals: Clustered, together: Clustered
) -> ObservedScore:
    rate = float(scores.mean())
    return ObservedScore(
        rate,
        intervals.rate_ci(scores),
        advantage(rate, float(blind.mean())),
        intervals.advantage_ci(scores, blind),
        together.advantage_ci(scores, blind)[0],
    )


def is_alarming(unlike: int, messages: int, simulated: int) -> bool:
    """Whether more messages are unlike all simulated ones than tolerable, or than chance explains.

    Of messages that are drawn as the simulated ones at most five in ``simulated + 1`` are called
    unlike, on average over what is simulated; the share for given simulations is then a draw from
    a Beta distribution.

    >>> is_alarming(0, 40, 50), is_alarming(2, 40, 50), is_alarming(3, 40, 50)
    (False, False, True)
    >>> is_alarming(2, 40, 1000)  # held against many, even two of 40 are no chance
    True
    """
    if unlike > TOLERATED * messages:
        return True
    if not unlike:
        return False
    others = max(1, simulated + 1 - BY_CHANCE)
    tail = float(stats.betabinom.sf(unlike - 1, messages, BY_CHANCE, others))
    return tail < ALARM
