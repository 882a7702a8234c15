"""The parts of a study as frozen, validated dataclasses; a study file fills them in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeVar

from torch import nn

from gradguard.attacks.composition import parse_dirichlet
from gradguard.evaluation.errors import UnusableInputError, one_line, unknown
from gradguard.evaluation.models import MODELS
from gradguard.evaluation.shift import SHIFTS

STAGES = ("init", "trained")
"""Fresh weights, and weights after training without a defence."""

MOST_ROUNDS = 100_000
"""Every round of every client is played."""

FIXED_COMPOSITIONS = ("iid", "skewed", "single")
Spec = TypeVar("Spec")


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Which images, and who holds them.

    Args:
        path: An ``.npz`` file; relative to the folder of the study file.
        name: A built-in data set, used when there is no ``path``; only ``"digits"``.
        classes: Number of classes in ``path``; the highest label plus one when not given.
        test_fraction: Share held out for accuracy, in (0, 1).
        client_fraction: Share of the rest that clients hold, in (0, 1); what is left is the
            attacker's auxiliary data.
    """

    path: str | None = None
    name: str | None = None
    classes: int | None = None
    test_fraction: float = 0.2
    client_fraction: float = 0.7

    def __post_init__(self) -> None:
        _text("data.path", self.path)
        if self.name not in (None, "digits"):
            raise unknown("data.name", str(self.name), ["digits"])
        if self.name is not None and self.path is not None:
            raise UnusableInputError("[data] has both path and name; keep one of them")
        if self.classes is not None:
            _whole("data.classes", self.classes, 2)
        _number("data.test_fraction", self.test_fraction, above=0, below=1)
        _number("data.client_fraction", self.client_fraction, above=0, below=1)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Which model: a built-in ``name`` or the user's own ``factory``, ``"module:callable"``."""

    name: str | None = None
    factory: str | None = None

    def __post_init__(self) -> None:
        _text("model.factory", self.factory)
        if self.name is not None and self.factory is not None:
            raise UnusableInputError("[model] has both name and factory; keep one of them")
        if self.name is not None and str(self.name) not in MODELS:
            raise unknown("model.name", str(self.name), MODELS)


@dataclass(frozen=True, kw_only=True)
class TrainingSpec:
    """How accuracy is measured: SGD with momentum, repeated from independent seeds.

    Args:
        steps: Optimizer steps per training run.
        seeds: Independent repeats behind every accuracy and every interval; one repeat has no
            accuracy interval.
        label_smoothing: Share of every label that is spread evenly over all classes, in [0, 1).
            Clients that are attacked and all training use it.
    """

    steps: int = 300
    batch_size: int = 64
    learning_rate: float = 0.05
    momentum: float = 0.9
    seeds: int = 3
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        _whole("training.steps", self.steps, 1)
        _whole("training.batch_size", self.batch_size, 1)
        _whole("training.seeds", self.seeds, 1)
        _number("training.learning_rate", self.learning_rate, above=0)
        if isinstance(self.momentum, bool) or self.momentum != 0:  # zero is plain SGD
            _number("training.momentum", self.momentum, above=0, below=1)
        if isinstance(self.label_smoothing, bool) or self.label_smoothing != 0:
            _number("training.label_smoothing", self.label_smoothing, above=0, below=1)

    @property
    def criterion(self) -> nn.CrossEntropyLoss:
        """The clients' loss, as the mean over a batch."""
        return nn.CrossEntropyLoss(label_smoothing=self.label_smoothing)


@dataclass(frozen=True, kw_only=True)
class AttackSpec:
    """What is attacked, how often, and by whom.

    Args:
        batch_sizes: Examples in a victim's batch.
        compositions: Names of :data:`gradguard.attacks.composition.NAMES`.
        stages: Some of ``"init"`` and ``"trained"``.
        rounds: In how many rounds the client sends, with the same data and model, to a server
            that pools what it gets; one row for each.
        participation: The chance that the client takes part in a round, in (0, 1]; at least once.
        trials: Scored batches per cell, over all seeds.
        calibration: Batches per cell, over all seeds, on which the worst attack is chosen; none
            of their images is in a scored batch.
        seeds: Of the ``training.seeds`` models, how many are attacked; all when not given.
        simulated: Batches that a learned attacker simulates; its own default when not given.
        attackers: ``"all"``, or attack names. The blind baselines always take part.
        auxiliary_per_class: Images of each class that the attacker has, where a class has so many;
            all of the auxiliary part when not given. What it knows of the label prior are its
            images' labels: these are then even.
        auxiliary_shift: One of :data:`gradguard.evaluation.shift.SHIFTS`: how the attacker's
            images differ from the clients'.
    """

    batch_sizes: tuple[int, ...] = (8, 64)
    compositions: tuple[str, ...] = ("iid", "skewed")
    stages: tuple[str, ...] = STAGES
    rounds: tuple[int, ...] = (1,)
    participation: float = 1.0
    trials: int = 100
    calibration: int = 50
    seeds: int | None = None
    simulated: int | None = None
    attackers: str | tuple[str, ...] = "all"
    auxiliary_per_class: int | None = None
    auxiliary_shift: str = "none"

    def __post_init__(self) -> None:
        for size in _several("attack.batch_sizes", self.batch_sizes):
            _whole("attack.batch_sizes", size, 1)
        for name in _several("attack.compositions", self.compositions):
            check_composition(name)
        for stage in _several("attack.stages", self.stages):
            if stage not in STAGES:
                raise unknown("attack stage", str(stage), STAGES)
        for number in _several("attack.rounds", self.rounds):
            _whole("attack.rounds", number, 1)
            if number > MOST_ROUNDS:
                raise UnusableInputError(f"attack.rounds: at most {MOST_ROUNDS:,}, got {number}")
        _share("attack.participation", self.participation)
        _whole("attack.trials", self.trials, 2)
        _whole("attack.calibration", self.calibration, 1)
        if self.seeds is not None:
            _whole("attack.seeds", self.seeds, 1)
        if self.simulated is not None:
            _whole("attack.simulated", self.simulated, 40)
        if self.attackers != "all":
            _several("attack.attackers", self.attackers)
        if self.auxiliary_per_class is not None:
            _whole("attack.auxiliary_per_class", self.auxiliary_per_class, 1)
        if str(self.auxiliary_shift) not in SHIFTS:
            raise unknown("attack.auxiliary_shift", str(self.auxiliary_shift), SHIFTS)


def check_composition(name: object) -> None:
    """Raise unless ``name`` is a batch composition."""
    if name in FIXED_COMPOSITIONS:
        return
    try:
        parse_dirichlet(str(name))
    except ValueError as error:
        raise UnusableInputError(f"attack.compositions: {one_line(error)}") from error


def build(spec: type[Spec], section: str, table: object) -> Spec:
    """A spec from a table of a study file; an unknown key names the nearest known one."""
    if not isinstance(table, Mapping):
        raise UnusableInputError(f"[{section}] must be a table of keys and values, got {table!r}")
    every = fields(spec)  # type: ignore[arg-type]  # every spec is a dataclass
    known = [f.name for f in every]
    for key in table:
        if key not in known:
            raise unknown(f"key in [{section}]", key, known)
    for f in every:
        if f.default is MISSING and f.default_factory is MISSING and f.name not in table:
            raise UnusableInputError(f"[{section}] needs {f.name}, which has no default")
    # TOML has arrays where a frozen dataclass has tuples.
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
    try:
        return spec(**values)
    except UnusableInputError:
        raise
    except (TypeError, ValueError) as error:  # of a dataclass that is not only a study's
        raise UnusableInputError(f"[{section}]: {one_line(error)}") from error


def _whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UnusableInputError(
            f"{name} must be a whole number of at least {least}, got {value!r}"
        )


def _number(name: str, value: Any, *, above: float, below: float = float("inf")) -> None:
    # Written so that NaN fails; bool is a number to Python and a slip in a study file.
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if not (numeric and above < value < below):
        bound = f"above {above}" + (f" and below {below}" if below < float("inf") else "")
        raise UnusableInputError(f"{name} must be a number {bound}, got {value!r}")


def _share(name: str, value: Any) -> None:
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if not (numeric and 0 < value <= 1):
        raise UnusableInputError(f"{name} must be a number above 0 and at most 1, got {value!r}")


def _text(name: str, value: object) -> None:
    if value is not None and not (isinstance(value, str) and value):
        raise UnusableInputError(f"{name} must be text, got {value!r}")


def _several(name: str, values: Any) -> tuple[Any, ...]:
    if not isinstance(values, tuple) or not values:
        raise UnusableInputError(f"{name} must be a list with at least one entry, got {values!r}")
    # Not a set: an entry may be a list or a table, which cannot be hashed.
    if any(value in values[:i] for i, value in enumerate(values)):
        raise UnusableInputError(f"{name} lists an entry twice: {list(values)}")
    return values
