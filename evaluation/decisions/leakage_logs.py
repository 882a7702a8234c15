"""Where a monitor writes what it has measured: a line on the console, TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from gradguard.evaluation.decisions.leakage import Leakage
from gradguard.evaluation.views.sentences import NOTICEABLE
from gradguard.evaluation.views.table import make_console


class ConsoleLog:
    """One line on stderr for every measurement.

    Red where it exceeds the limit, or where there is none and the leak is clear.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = make_console(stderr=True) if console is None else console

    def __call__(self, leakage: Leakage) -> None:
        clear = leakage.limit is None and leakage.advantage_ci[0] > NOTICEABLE
        style = "red" if leakage.exceeded or clear else ""
        self._console.print(Text(f"gradguard {leakage}", style=style), soft_wrap=True)


class TensorBoardLog:
    """Scalars under ``gradguard/``, at the monitor's step.

    Args:
        folder: Where TensorBoard looks for event files.

    Raises:
        ImportError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path | str) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "TensorBoardLog needs TensorBoard: pip install 'gradguard[tensorboard]'"
            ) from error
        self._writer: Any = SummaryWriter(str(folder))

    def __call__(self, leakage: Leakage) -> None:
        low, high = leakage.advantage_ci
        values = {
            "advantage": leakage.advantage,
            "advantage_low": low,
            "advantage_high": high,
            "labels_read": leakage.asr,
            "labels_read_blind": leakage.blind_asr,
            "seconds": leakage.seconds,
        }
        if leakage.own_batch is not None:
            values["labels_read_own_batch"] = leakage.own_batch
        for name, value in values.items():
            self._writer.add_scalar(f"gradguard/{name}", value, leakage.step)
        # A run that is blocked ends here.
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()
