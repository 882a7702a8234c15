"""Everything a study needs before its first row: data, parts, models, attacks; checked early."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from gradguard.attacks.threat import Attack
from gradguard.evaluation.attackers import select_attacks, shaped
from gradguard.evaluation.batches import Batch, draw_batches
from gradguard.evaluation.cohort import OtherClients
from gradguard.evaluation.data import Data, load_digits, load_npz
from gradguard.evaluation.errors import UnusableInputError, one_line
from gradguard.evaluation.models import Factory, build_model, find_factory
from gradguard.evaluation.running.memo import GradientMemo
from gradguard.evaluation.running.preflight import check_defenses
from gradguard.evaluation.seeding import derive
from gradguard.evaluation.shift import SHIFTS
from gradguard.evaluation.split import Split, check_room, keep_per_class, split
from gradguard.evaluation.study import Study
from gradguard.evaluation.training import Outcome, train

# Shared by all models of a study. Gradients beyond it are computed again, not refused.
MEMO_BYTES = 256 * 2**20
# Likewise, for the other clients of cohorts.
OTHERS_BYTES = 192 * 2**20
DIVERGES = "training diverges even without a defence; lower training.learning_rate"


@dataclass(frozen=True)
class Cell:
    """The conditions of a row: everything but the defence."""

    stage: str
    composition: str
    batch_size: int
    rounds: int = 1

    @property
    def batches(self) -> Cell:
        """The same model and batches; all numbers of rounds share them."""
        return replace(self, rounds=1)


@dataclass(frozen=True, eq=False)
class Bench:
    """The set-up that all defences of a study share, so that rows differ only by the defence."""

    study: Study
    data: Data
    parts: Split
    factory: Factory
    attacks: dict[str, Attack]
    _undefended: dict[int, Outcome] = field(default_factory=dict)
    _diverged: set[int] = field(default_factory=set)
    _memos: dict[tuple[Cell, int], GradientMemo] = field(default_factory=dict)
    _others: dict[tuple[Cell, int, str], OtherClients] = field(default_factory=dict)

    def seed(self, *names: object) -> int:
        """The seed of one named stream of the study."""
        return derive(self.study.seed, *names)

    def fresh_model(self, repeat: int) -> nn.Module:
        """Untrained, the same for every defence."""
        return build_model(
            self.factory,
            input_shape=self.data.input_shape,
            num_classes=self.data.num_classes,
            seed=self.seed("model", repeat),
        )

    def model(self, stage: str, repeat: int) -> nn.Module:
        """The model that is attacked: fresh, or trained without a defence."""
        if stage == "init":
            return self.fresh_model(repeat)
        return copy.deepcopy(self.undefended(repeat).model)

    def undefended(self, repeat: int) -> Outcome:
        """Training without a defence, on the clients' history; run once per repeat."""
        if repeat not in self._undefended:
            self._undefended[repeat] = self.train_undefended(repeat)
        return self._undefended[repeat]

    def train_undefended(self, repeat: int) -> Outcome:
        """Train without a defence, now.

        Raises:
            UnusableInputError: It diverges.
        """
        if repeat in self._diverged:  # for each of the cells that attack it
            raise UnusableInputError(DIVERGES)
        outcome = train(
            self.fresh_model(repeat),
            self.part(self.parts.history),
            self.part(self.parts.test),
            spec=self.study.training,
            seed=self.seed("training", repeat),
            defense=None,
        )
        if outcome.diverged:
            self._diverged.add(repeat)
            raise UnusableInputError(DIVERGES)
        return outcome

    def has_undefended(self, repeat: int) -> bool:
        """Whether the repeat's undefended training is known already."""
        return repeat in self._undefended

    def take_undefended(self, repeat: int, outcome: Outcome) -> None:
        """Know the repeat's undefended training from elsewhere."""
        self._undefended[repeat] = outcome

    def undefended_accuracies(self) -> list[float]:
        """Test accuracies of the undefended models known so far, by repeat."""
        return [self._undefended[repeat].accuracy for repeat in sorted(self._undefended)]

    def part(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Images and labels of one part of the split."""
        return self.data.take(indices)

    def auxiliary(self) -> tuple[Tensor, Tensor]:
        """The attacker's own images and labels, shifted if the study says so."""
        images, labels = self.part(self.parts.auxiliary)
        shift = SHIFTS[self.study.attack.auxiliary_shift]
        return shift(images, self.seed("auxiliary shift")), labels

    def memo(self, cell: Cell, repeat: int) -> GradientMemo:
        """Raw gradients of the cell's model; those of earlier cells are let go."""
        cell = cell.batches
        for known in [key for key in self._memos if key[0] != cell]:
            del self._memos[known]
        room = MEMO_BYTES // self.study.attacked_seeds
        return self._memos.setdefault((cell, repeat), GradientMemo(room))

    def others(self, which: str, cell: Cell, repeat: int) -> OtherClients:
        """Who else may be in a cohort, the same population for every defence.

        Args:
            which: ``"calibration"`` or ``"scored"``, whose images they hold, or ``"auxiliary"``,
                as the attacker plays them.
        """
        cell = cell.batches
        for known in [key for key in self._others if key[0] != cell]:
            del self._others[known]
        if (cell, repeat, which) not in self._others:
            data, pool = self.data, getattr(self.parts, which)
            if which == "auxiliary":
                # In place, not by themselves: a few images per class are no data set of their own.
                images = data.images.clone()
                images[torch.from_numpy(pool)] = self.auxiliary()[0]
                data = replace(data, images=images)
            names = (cell.stage, cell.composition, cell.batch_size, repeat)
            room = OTHERS_BYTES // (3 * self.study.attacked_seeds)
            self._others[cell, repeat, which] = OtherClients(
                *(data, pool, cell.composition, cell.batch_size),
                seed=self.seed("other clients", which, *names),
                room=room,
            )
        return self._others[cell, repeat, which]

    def batches(self, which: str, cell: Cell, repeat: int) -> list[Batch]:
        """The cell's ``"calibration"`` or ``"scored"`` batches, the same for every defence."""
        spec = self.study.attack
        total = spec.trials if which == "scored" else spec.calibration
        return draw_batches(
            self.data,
            self.parts.scored if which == "scored" else self.parts.calibration,
            composition=cell.composition,
            batch_size=cell.batch_size,
            number=per_seed(total, self.study.attacked_seeds),
            seed=self.seed(which, cell.stage, cell.composition, cell.batch_size, repeat),
        )

    def builder(self, repeat: int) -> Callable[[], nn.Module]:
        """A function that builds the repeat's fresh model."""
        return partial(self.fresh_model, repeat)


def per_seed(total: int, seeds: int) -> int:
    """Batches per model seed, so that all seeds together have at least ``total``.

    >>> per_seed(100, 3)
    34
    """
    return -(-total // seeds)


def prepare(
    study: Study,
    *,
    data: Data | None = None,
    factory: Factory | None = None,
    checked: bool = False,
) -> Bench:
    """Load and check everything that can be wrong before any work is done.

    Args:
        data: Instead of what ``study.data`` names.
        factory: Instead of what ``study.model`` names.
        checked: Leave out what another process has found to be right.

    Raises:
        UnusableInputError: Something cannot be used.
    """
    attacks = select_attacks(study.attack)
    loaded = load_data(study) if data is None else data
    parts = split(
        loaded,
        test_fraction=study.data.test_fraction,
        client_fraction=study.data.client_fraction,
        seed=derive(study.seed, "split"),
    )
    check_room(parts, batch_sizes=study.attack.batch_sizes, training=study.training.batch_size)
    if study.attack.auxiliary_per_class is not None:
        most = study.attack.auxiliary_per_class
        kept = keep_per_class(parts.auxiliary, loaded.labels.numpy(), most)
        parts = replace(parts, auxiliary=kept)
    model = study.model
    if factory is None:
        default = "cnn-relu" if model.factory is None else None
        factory = find_factory(model.name or default, model.factory)
    bench = Bench(study, loaded, parts, factory, shaped(attacks, loaded.input_shape))
    if checked:
        return bench
    _try_shift(bench)
    check_defenses(study, bench.fresh_model(0), loaded)
    return bench


def load_data(study: Study) -> Data:
    """The data that the study names."""
    if study.data.path is None:
        return load_digits()
    return load_npz(Path(study.data.path), classes=study.data.classes)


def _try_shift(bench: Bench) -> None:
    try:
        bench.auxiliary()
    except ValueError as error:
        raise UnusableInputError(f"attack.auxiliary_shift: {one_line(error)}") from error
