"""A client that measures its own leakage while it trains, before it sends."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gradguard import DPSGD, Attached, Defense, GuardedOptimizer, LocalTraining
from gradguard.attacks.head import find_head
from gradguard.attacks.threat import Client, Knowledge
from gradguard.client import Loss
from gradguard.evaluation.attackers import BLIND, select_attacks, shaped
from gradguard.evaluation.data import Data
from gradguard.evaluation.decisions.leakage import Leakage, LeakageError, LeakageWarning
from gradguard.evaluation.decisions.leakage_logs import ConsoleLog
from gradguard.evaluation.decisions.own_state import OwnStateClient, guarded_names, plain_copy
from gradguard.evaluation.decisions.playing import LEAST_TRIALS, Played, play
from gradguard.evaluation.metrics import success
from gradguard.evaluation.seeding import derive
from gradguard.evaluation.specs import AttackSpec, check_composition

if TYPE_CHECKING:
    from gradguard.dp import PrivateTraining

Action = Literal["log", "warn", "block"]
Mode = Literal["schedule", "own state"]
Log = Callable[[Leakage], None]


@dataclass(eq=False)
class Monitor:
    """Plays the attacker against this client's own defence every ``every`` steps.

    Call :meth:`check` in the training loop before ``optimizer.step()`` or ``release()``. Messages
    are simulated from the auxiliary data, at the model as it is now; attackers learn from some of
    them and are scored on others.

    *A decision to block is a signal.* A server that sees no message learns that the limit was
    exceeded. If that was found from the client's data, it learns something of them, and a DP
    guarantee does not cover it. So by default nothing that is decided depends on them:

    ============== ==================================== =========================================
    ``mode``        measured from                        depends on the client's data through
    ============== ==================================== =========================================
    ``"schedule"``  auxiliary data, the model, the       the model: known to the server where each
                    transform as in a first round        step is sent; not between local steps
    ``"own state"`` and a copy of the guard's state      residuals and momenta of past batches too
    ============== ==================================== =========================================

    In both, steps are fixed in advance. With ``action="log"`` or ``"warn"`` nothing that is sent
    ever changes, and the mode matters only to who reads the log. The real batch (``labels`` of
    :meth:`check`) is one sample for the log: it has no part in any decision, in any mode.

    Guarantees:

    - the guard, its state and noise, the model with its gradients, buffers and mode, and torch's
      global random state are bitwise what they were, and no hook of a module is called;
    - with ``"block"`` :meth:`check` raises before anything is sent, and in every further step
      until a later measurement holds the limit;
    - where a measurement fails :meth:`check` raises, and the next call measures again;
    - the limit is held against the bad end of the 95 % interval;
    - where no attack can be mounted it raises; that is never taken for safety.

    Not guaranteed: that the real batches leak as simulated ones do, that no better attacker
    exists, that :meth:`check` is called, or anything of a model that its hooks change.

    Args:
        guarded: The guarded optimizer; or what :meth:`Defense.attach` returned; or a
            :class:`Defense`, for a client of another framework.
        model: That it trains.
        auxiliary: Inputs and labels that are public or the client's to spend: not its data.
            At least 8 examples of each class.
        batch_size: Examples behind a message.
        every: Calls of :meth:`check` from one measurement to the next; the first call measures.
        action: What is done where the limit is exceeded, beside logging.
        max_advantage: The limit, below 1. Needed by ``"warn"`` and ``"block"``.
        mode: See above. ``"own state"`` needs a guarded optimizer, and is refused with DP-SGD.
        training: Local steps behind a message, if it is a change of the model.
        loss: Predictions and labels to the mean over the batch.
        log: Called with every measurement; several may be given.
        attackers: ``"all"`` or names.
        calibration, trials, simulated: Messages that choose the attacker, that are scored (at
            least 20), and that learned attackers rehearse on.
        composition: Of batches, see :mod:`gradguard.attacks.composition`; a mixture if ``None``.
        num_classes: The highest auxiliary label plus one if ``None``.
        seed: Of all simulations.

    ``history`` holds all measurements. One takes about 550 messages and what the attackers learn
    from them: 4 to 7 s for models of 8,000 to 21,000 parameters, with one thread, at batches of 8.

    >>> from gradguard import KeepTopK, guard
    >>> from gradguard.evaluation import load_digits
    >>> digits = load_digits()
    >>> _ = torch.manual_seed(0)
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    >>> optimizer = guard(torch.optim.SGD(net.parameters(), lr=0.1), KeepTopK(0.1), model=net)
    >>> monitor = Monitor(
    ...     optimizer,
    ...     model=net,
    ...     auxiliary=(digits.images[:600], digits.labels[:600]),
    ...     batch_size=8,
    ...     max_advantage=0.2,
    ...     log=[],
    ...     attackers=["LLG", "TemplateRegression(head)"],
    ... )
    >>> net(digits.images[600:608]).square().sum().backward()
    >>> leakage = monitor.check()
    >>> leakage.attack, leakage.exceeded
    ('TemplateRegression(head)', True)
    >>> monitor.check() is None  # the next measurement is at step 100
    True
    """

    guarded: GuardedOptimizer | Attached | PrivateTraining | Defense
    _: KW_ONLY
    model: nn.Module
    auxiliary: tuple[Tensor, Tensor]
    batch_size: int
    every: int = 100
    action: Action = "log"
    max_advantage: float | None = None
    mode: Mode = "schedule"
    training: LocalTraining | None = None
    loss: Loss = cross_entropy
    log: Log | list[Log] | None = None
    attackers: str | list[str] | tuple[str, ...] = "all"
    calibration: int = 50
    trials: int = 100
    simulated: int = 300
    composition: str | None = None
    num_classes: int | None = None
    seed: int = 0
    history: list[Leakage] = field(default_factory=list, init=False)
    _calls: int = field(default=0, init=False, repr=False)
    _blocked: Leakage | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.log is None:
            self.log = ConsoleLog()
        _check(self)
        inputs, labels = self.auxiliary
        classes = self.num_classes
        if classes is None:
            classes = int(labels.max()) + 1 if labels.numel() else 0
        # Checks labels, sizes and values, and that every class can be rehearsed and judged.
        self._data = Data("auxiliary", inputs.detach().cpu(), labels.detach().cpu(), classes)
        names = AttackSpec(
            attackers="all" if self.attackers == "all" else tuple(self.attackers),
            simulated=self.simulated,
        )
        self._attacks = shaped(select_attacks(names), self._data.input_shape)
        if isinstance(self.guarded, Attached):
            self.guarded = self.guarded.optimizer
        self._defense = defense_of(self.guarded)
        copied = self._copy()
        find_head({n: p for n, p in copied.named_parameters() if p.requires_grad}, classes)

    def check(self, *, labels: Tensor | None = None) -> Leakage | None:
        """Measure if it is time to; call before ``optimizer.step()`` or ``release()``.

        Args:
            labels: Of the real batch, whose raw gradients are in ``p.grad`` now; for the log.

        Returns:
            What was measured; ``None`` between two measurements.

        Raises:
            LeakageError: With ``action="block"``, where the last measurement exceeds the limit.
            UnusableInputError: No attack can be mounted on this model.
        """
        step, found = self._calls, None
        if step % self.every == 0:
            # Where this fails no step is counted: the next call measures, and none is let through.
            found = self._measured(step, labels)
            self._blocked = found if self.action == "block" and found.exceeded else None
        self._calls += 1
        if found is not None:
            self._tell(found)  # decided before: a log that fails ends no block
        if self._blocked is not None:
            raise LeakageError(self._blocked)
        return found

    def measure(self, *, step: int | None = None, labels: Tensor | None = None) -> Leakage:
        """Measure now and log it; warns where ``action`` says so, and never blocks."""
        found = self._measured(self._calls if step is None else step, labels)
        self._tell(found)
        return found

    def _measured(self, step: int, labels: Tensor | None) -> Leakage:
        began = time.perf_counter()
        model = self._copy()
        knowledge = Knowledge(
            model=model,
            auxiliary=(self._data.images, self._data.labels),
            num_classes=self._data.num_classes,
            batch_size=self.batch_size,
            composition=self.composition,
            local_steps=1 if self.training is None else self.training.steps(self.batch_size),
            learning_rate=(
                None if self.training is None else self.training.effective_rate(self.batch_size)
            ),
            # The same batches each time: what changes is then the model, and not the sample.
            seed=derive(self.seed, "monitor"),
        )

        def make_client(stream: str) -> Client:
            return self._client(model, derive(self.seed, "noise", stream, step))

        played = play(
            make_client,
            knowledge,
            self._attacks,
            calibration=self.calibration,
            trials=self.trials,
        )
        found = self._leakage(played, step, time.perf_counter() - began)
        if labels is not None:
            found = replace(found, own_batch=self._own_batch(played, knowledge, labels, step))
        return found

    def _tell(self, found: Leakage) -> None:
        self.history.append(found)
        for log in self.log if isinstance(self.log, list) else [self.log]:
            if log is not None:
                log(found)
        if self.action == "warn" and found.exceeded:
            warnings.warn(str(found), LeakageWarning, stacklevel=3)

    def _leakage(self, played: Played, step: int, seconds: float) -> Leakage:
        worst = played.worst
        return Leakage(
            step=step,
            attack=worst,
            asr=played.rate(worst),
            ci=played.rate_ci(worst),
            blind_asr=played.rate(BLIND),
            advantage=played.advantage(worst),
            advantage_ci=played.advantage_ci(worst),
            trials=self.trials,
            seconds=seconds,
            limit=self.max_advantage,
        )

    def _copy(self) -> nn.Module:
        """The model now; what the guard does not train is not sent, and is no gradient here."""
        copied = plain_copy(self.model)
        if isinstance(self.guarded, GuardedOptimizer):
            trained = set(guarded_names(self.guarded, self.model))
            for name, parameter in copied.named_parameters():
                parameter.requires_grad_(parameter.requires_grad and name in trained)
        return copied

    def _client(self, model: nn.Module, seed: int) -> Client:
        if self.mode == "own state":
            assert isinstance(self.guarded, GuardedOptimizer)  # by _check
            return OwnStateClient(self.guarded, self.model, loss=self.loss, seed=seed)
        return self._defense.client(
            model, loss=self.loss, batch_size=self.batch_size, seed=seed, training=self.training
        )

    def _own_batch(
        self, played: Played, knowledge: Knowledge, labels: Tensor, step: int
    ) -> float | None:
        """How much of the real batch the worst attacker reads of a message like the real one.

        ``None`` where the batch has another size than messages are to have.
        """
        if not isinstance(self.guarded, GuardedOptimizer) or self.training is not None:
            raise ValueError(
                "labels of the real batch are of use only where a guarded optimizer has its "
                "gradients; leave them out"
            )
        if labels.numel() != self.batch_size:
            return None  # the last batch of an epoch: attackers have learned to read others
        classes = self._data.num_classes
        truth = np.bincount(labels.detach().cpu().numpy(), minlength=classes)
        if len(truth) != classes:
            raise ValueError(f"expected labels below {classes}, got {int(labels.max())}")
        client = OwnStateClient(
            self.guarded, self.model, loss=self.loss, seed=derive(self.seed, "own", step)
        )
        params = [p for group in self.guarded.param_groups for p in group["params"]]
        message = client.release([p.grad for p in params])
        with torch.random.fork_rng(devices=[]):
            counts = played.fitted[played.worst].infer([knowledge.observe(message)])
        return float(success(counts.numpy(), truth[None])[0])


def defense_of(guarded: object) -> Defense:
    """The defence that ``guarded`` runs, as one that can be played.

    Raises:
        TypeError: It is none of what a monitor can watch.
    """
    if isinstance(guarded, Defense):
        return guarded
    if type(guarded) is GuardedOptimizer:
        return Defense("monitored", transform=guarded.transform)
    from gradguard.dp import PrivateTraining  # Opacus takes seconds to import

    if not isinstance(guarded, PrivateTraining):
        raise TypeError(
            "a monitor watches a guarded optimizer, what make_private or Defense.attach returned, "
            f"or a Defense; got {type(guarded).__name__}"
        )
    private = guarded.optimizer
    norms = getattr(private, "max_grad_norms", None)  # one for each parameter, where there are
    dp = DPSGD(
        noise_multiplier=private.noise_multiplier,
        max_grad_norm=private.max_grad_norm if norms is None else tuple(norms),
        mode="ghost" if type(private).__name__ == "PrivateGhostOptimizer" else "hooks",
    )
    return Defense("monitored", transform=guarded.guard.transform, dp=dp)


def _check(monitor: Monitor) -> None:
    for name in ("batch_size", "every", "calibration", "trials"):
        value = getattr(monitor, name)
        least = LEAST_TRIALS if name == "trials" else 1
        if not (isinstance(value, int) and not isinstance(value, bool) and value >= least):
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    if monitor.action not in get_args(Action):
        raise ValueError(f"action must be one of {get_args(Action)}, got {monitor.action!r}")
    if monitor.mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {get_args(Mode)}, got {monitor.mode!r}")
    limit = monitor.max_advantage
    if limit is None and monitor.action != "log":
        raise ValueError(f"action={monitor.action!r} needs max_advantage=..., which has no default")
    if limit is not None and not 0 <= limit < 1:
        raise ValueError(f"max_advantage must be at least 0 and below 1, got {limit!r}")
    if monitor.composition is not None:
        check_composition(monitor.composition)
    if monitor.mode == "own state":
        if not isinstance(monitor.guarded, GuardedOptimizer | Attached):
            raise ValueError(
                "mode='own state' needs a guarded optimizer; with DP-SGD its decisions would be "
                "outside of the guarantee, and a Defense has no state. Use mode='schedule'"
            )
        if monitor.training is not None:
            raise ValueError("mode='own state' is for gradients; leave out training=...")
