"""A :class:`~gradguard.evaluation.Monitor` inside Lightning's training loop."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gradguard import GuardedOptimizer
from gradguard.evaluation.decisions.monitor import Monitor


def monitor_lightning(
    *, auxiliary: tuple[Tensor, Tensor], batch_size: int, optimizer: int = 0, **settings: Any
) -> Any:
    """A callback for Lightning's ``Trainer`` that measures before the optimizer steps.

    The ``LightningModule`` returns a guarded optimizer from ``configure_optimizers``, with names
    from itself: ``guard(..., model=self)``. Its ``forward`` gives the class scores. The monitor is
    made when training starts, and is the callback's ``monitor`` from then on.

    Guarantees:

    - it measures when the gradients of a step are complete and before the guard transforms them;
    - an optimizer that is not guarded is refused before the first step.

    With several processes each measures by itself, and all find the same where the model is the
    same: they stop together.

    Args:
        optimizer: Which of the module's optimizers is watched.
        settings: All else that :class:`~gradguard.evaluation.Monitor` takes.

    Raises:
        ImportError: Lightning is not installed.
        TypeError: When training starts: the optimizer is not guarded.

    >>> import torch
    >>> some = torch.zeros(16, 4), torch.arange(16) % 2
    >>> monitor_lightning(auxiliary=some, batch_size=2, every=50).monitor is None
    True
    """
    try:
        from lightning.pytorch import Callback
    except ImportError as error:
        raise ImportError(
            "monitor_lightning needs Lightning: pip install 'gradguard[lightning]'"
        ) from error

    class MonitorCallback(Callback):
        monitor: Monitor | None = None

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            guarded = trainer.optimizers[optimizer]
            if not isinstance(guarded, GuardedOptimizer):
                raise TypeError(
                    "a monitor needs a guarded optimizer: return gradguard.guard(..., model=self) "
                    f"from configure_optimizers, got {type(guarded).__name__}"
                )
            self.monitor = Monitor(
                guarded, model=pl_module, auxiliary=auxiliary, batch_size=batch_size, **settings
            )

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            if self.monitor is not None and optimizer is self.monitor.guarded:
                self.monitor.check()

    return MonitorCallback()
