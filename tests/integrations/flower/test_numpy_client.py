"""Clients of Flower's older kind, whose arrays have no names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import FitIns, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.compat.common.recorddict_compat import fitins_to_recorddict, recorddict_to_fitres
from torch import nn

from gradguard import ClipByGlobalNorm, Defense
from gradguard.integrations.flower import GuardMod
from tests.integrations.flower.exchange import context

CLIP = Defense("clip", transform=ClipByGlobalNorm(0.5))


def normed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


class Trains(NumPyClient):
    def fit(self, parameters: list[Any], config: Any) -> tuple[list[Any], int, dict[str, Any]]:
        return [array + np.ones_like(array) for array in parameters], 5, {"loss": 0.1}


def asked() -> Message:
    arrays = [tensor.numpy() for tensor in normed().state_dict().values()]
    content = fitins_to_recorddict(FitIns(ndarrays_to_parameters(arrays), {}), keep_input=True)
    message = Message(content, dst_node_id=1, message_type="train")
    message.metadata.__dict__["_message_id"] = "1"
    return message


def reply_of(mod: GuardMod) -> Message:
    def client(_: Context) -> Any:
        return Trains().to_client()

    return ClientApp(client_fn=client, mods=[mod])(asked(), context())


def test_its_arrays_are_those_of_the_model_in_its_order() -> None:
    reply = reply_of(GuardMod(CLIP, model=normed, buffers="withhold"))
    answer = recorddict_to_fitres(reply.content, keep_input=True)
    assert answer.num_examples == 5
    found = dict(zip(normed().state_dict(), parameters_to_ndarrays(answer.parameters), strict=True))
    start = normed().state_dict()
    changes = [found[name] - start[name].numpy() for name, _ in normed().named_parameters()]
    norm = np.sqrt(sum(float((change**2).sum()) for change in changes))
    assert norm == pytest.approx(0.5, rel=1e-4)
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert np.array_equal(found[name], start[name].numpy())


def test_without_a_model_nothing_says_what_is_a_parameter() -> None:
    assert "NumPyClient" in str(reply_of(GuardMod(CLIP)).error.reason)


def test_another_model_is_refused() -> None:
    reply = reply_of(GuardMod(CLIP, model=lambda: nn.Linear(2, 2)))
    assert "shapes are not those" in str(reply.error.reason)
