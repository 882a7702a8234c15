"""Which candidates to try next: a spread of the space first, then what Optuna makes of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from scipy.stats import qmc

from gradguard.evaluation.search.ranges import Range
from gradguard.evaluation.search.space import Point, Space
from gradguard.evaluation.seeding import derive

KIND = "kind"

STARTUP = 10
"""At least so many candidates are a spread of the space, and at least two of every kind."""


@dataclass(frozen=True)
class Tried:
    """A candidate and what was found, every value to be made small."""

    point: Point
    values: tuple[float, ...]


def tpe(seed: int) -> BaseSampler:
    """The sampler after the spread: TPE over the parameters of each kind together.

    Measured by ``python -m tests.evaluation.search.sampler_comparison`` on a problem in closed
    form, with 12 seeds and batches of 8: the share of the best hypervolume known after 40 and
    after 96 candidates was 0.83 and 0.92, with one parameter at a time 0.80 and 0.92, with NSGA-II
    0.71 and 0.81, with the spread alone 0.74 and 0.84, and with random candidates 0.68 and 0.80.
    NSGA-II crosses only parameters that all kinds have, which here are none; where every candidate
    has those of all kinds it does worse still.
    """
    # The liar: without it, the candidates of one batch would be much alike.
    return TPESampler(
        seed=seed, n_startup_trials=0, multivariate=True, group=True, constant_liar=True
    )


def propose(
    space: Space,
    tried: Sequence[Tried],
    *,
    count: int,
    seed: int,
    sampler: Callable[[int], BaseSampler] = tpe,
) -> list[Point]:
    """The next candidates to try.

    A sampler is made anew for every candidate, from the seed and the candidate's number: what it
    proposes depends on nothing but the arguments, so that a search that was killed goes on as if
    it had not been.

    Guarantees:

    - the same arguments give the same candidates;
    - the candidates of one batch differ where the space has room, for each is asked for in the
      presence of those before it.

    Args:
        tried: What was found so far, in the order in which it was proposed.
        count: How many to propose.
        seed: Decides the spread and every later draw.
        sampler: Makes an Optuna sampler from a seed.

    >>> space = Space.from_list([{"name": "{bits} bits", "transform": [
    ...     {"Quantize": {"bits": {"low": 2, "high": 8}}}]}])
    >>> [space.defense(point).name for point in propose(space, [], count=3, seed=0)]
    ['3 bits', '7 bits', '5 bits']
    """
    first = spread(space, seed=seed, least=0 if tried else count)
    proposed: list[Point] = []
    with quiet_optuna():
        study = optuna.create_study(
            directions=[StudyDirection.MINIMIZE] * (len(tried[0].values) if tried else 2),
            sampler=sampler(seed),
        )
        study.add_trials([frozen(space, t.point, t.values) for t in tried])
        for number in range(len(tried), len(tried) + count):
            if number < len(first):
                point = first[number]
                study.add_trial(frozen(space, point, None))
            else:
                study.sampler = sampler(derive(seed, "search", number) % 2**32)
                point = ask(study.ask(), space)
            proposed.append(point)
    return proposed


def spread(space: Space, *, seed: int, least: int = 0) -> list[Point]:
    """A first look at all of the space: the kinds in turn, each over a low-discrepancy sequence.

    Args:
        least: At least so many points; more only add to the fewer.
    """
    kinds = len(space.kinds)
    each = -(-max(STARTUP, 2 * kinds, least) // kinds)
    shares = [
        qmc.Halton(
            max(1, len(kind.ranges)), seed=np.random.default_rng(derive(seed, "spread", i))
        ).random(each)
        for i, kind in enumerate(space.kinds)
    ]
    return [
        Point(
            i,
            tuple(
                r.at(float(share)) for share, (_, r) in zip(shares[i][n], kind.ranges, strict=False)
            ),
        )
        for n in range(each)
        for i, kind in enumerate(space.kinds)
    ]


def frozen(space: Space, point: Point, values: Sequence[float] | None) -> FrozenTrial:
    """A point as Optuna's trial: finished, or still running where there are no values."""
    distributions: dict[str, BaseDistribution] = {**_kinds(space)}
    params: dict[str, float] = {KIND: point.kind} if distributions else {}
    kind = space.kinds[point.kind]
    for (_, parameter), place in zip(kind.ranges, point.places, strict=True):
        label = _label(point.kind, parameter)
        distributions[label], params[label] = _distribution(parameter), place
    state = TrialState.RUNNING if values is None else TrialState.COMPLETE
    return create_trial(state=state, params=params, distributions=distributions, values=values)


def point_of(space: Space, params: Mapping[str, float]) -> Point:
    """The inverse of :func:`frozen`.

    Raises:
        KeyError: They are of another space.
    """
    kind = int(params[KIND]) if _kinds(space) else 0
    ranges = space.kinds[kind].ranges
    return Point(kind, tuple(params[_label(kind, parameter)] for _, parameter in ranges))


def ask(trial: Trial, space: Space) -> Point:
    """The point that Optuna proposes."""
    kinds = _kinds(space)
    kind = _position(trial, KIND, kinds[KIND]) if kinds else 0
    return Point(kind, ask_places(trial, space, kind))


def ask_places(trial: Trial, space: Space, kind: int) -> tuple[float, ...]:
    """The places that Optuna proposes for the parameters of one kind."""
    places: list[float] = []
    for _, parameter in space.kinds[kind].ranges:
        label, known = _label(kind, parameter), _distribution(parameter)
        if isinstance(known, CategoricalDistribution):
            places.append(_position(trial, label, known))
        elif isinstance(known, IntDistribution):
            places.append(trial.suggest_int(label, known.low, known.high, log=known.log))
        else:
            places.append(trial.suggest_float(label, known.low, known.high, log=known.log))
    return tuple(places)


def _position(trial: Trial, label: str, known: CategoricalDistribution) -> int:
    position = trial.suggest_categorical(label, known.choices)
    assert isinstance(position, int)  # by _distribution and _kinds
    return position


def _kinds(space: Space) -> dict[str, CategoricalDistribution]:
    # A choice of one would only cost the sampler a dimension.
    number = len(space.kinds)
    return {KIND: CategoricalDistribution(tuple(range(number)))} if number > 1 else {}


def _label(kind: int, parameter: Range) -> str:
    return f"{kind}: {parameter.name}"


def _distribution(
    parameter: Range,
) -> CategoricalDistribution | IntDistribution | FloatDistribution:
    if parameter.choices is not None:
        # By position: Optuna's choices may not be lists.
        return CategoricalDistribution(tuple(range(len(parameter.choices))))
    if parameter.count is not None:
        return IntDistribution(0, parameter.count - 1)
    low, high = parameter.bounds
    if parameter.whole:
        return IntDistribution(int(low), int(high), log=parameter.log)
    return FloatDistribution(low, high, log=parameter.log)


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Without Optuna's word that a study was created, and that ``group`` is experimental."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
