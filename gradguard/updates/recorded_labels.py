"""The truth behind messages, written by the audited clients: how many labels of each class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gradguard.updates.recording_layout import (
    LABELS,
    RecordingError,
    check_client,
    check_count,
    check_round,
    labels_file,
    round_folder,
    unwritable,
    write_json,
)


def record_labels(
    folder: Path | str, number: int, client: str, labels: Tensor, *, classes: int
) -> None:
    """Write the truth behind one message: how many examples of each class. Called by the client.

    The server sees nothing of it. Several clients may write at once, from different processes,
    and before the server has begun. A client that trains the same round again writes anew.

    Args:
        folder: That of the recorder, or one whose ``labels`` are copied there later.
        number: The round.
        client: The name that the server has for this client.
        labels: Integers in ``[0, classes)``, one for each example behind the message.
        classes: Of the task.

    Raises:
        RecordingError: A label lies outside of the classes, there are none, or the folder cannot
            be written to.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     record_labels(folder, 1, "7", torch.tensor([2, 0, 2]), classes=3)
    ...     print((Path(folder) / "labels/round-0001/client-7.json").read_text())
    {"format": 1, "round": 1, "client": "7", "counts": [1, 0, 2]}
    """
    check_round(number)
    check_client(client)
    check_count("classes", classes)
    found = labels.detach().cpu().flatten()
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise RecordingError(f"labels must be integers, got {labels.dtype}")
    if not found.numel() or int(found.min()) < 0 or int(found.max()) >= classes:
        raise RecordingError(
            f"labels must be at least one and lie in [0, {classes}), got {found[:5].tolist()}, ..."
        )
    counts = np.bincount(found.numpy(), minlength=classes).tolist()
    path = Path(folder) / LABELS / round_folder(number) / labels_file(client)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"round": number, "client": client, "counts": counts})
    except OSError as error:
        raise unwritable(Path(folder), error) from error
