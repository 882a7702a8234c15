"""Clients whose training is a known function of their partition and round, and what they send.

From the second round on some partitions do what the name says that ``MISBEHAVIOUR`` has for them.
Everything that happens is written to the folder in the run's config.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

import gradguard
from gradguard import wire
from gradguard.dp import ClientDP
from gradguard.integrations.flower import DecodingStrategy, GuardMod, Observer
from gradguard.integrations.flower.arrays import record_of, tensors_of

MISBEHAVIOUR = {4: "crash", 5: "nan", 6: "nan sent", 7: "truncated", 8: "replay"}
"""By partition; the one that crashes does so in the second round only."""

client = ClientApp()
server = ServerApp()


def initial_model() -> dict[str, Tensor]:
    """Where all clients start."""
    rng = torch.Generator().manual_seed(0)
    shapes = {"weight": (40, 30), "bias": (40,), "scale": ()}
    return {name: torch.randn(shape, generator=rng) for name, shape in shapes.items()}


def trained(received: Mapping[str, Tensor], partition: int, number: int) -> dict[str, Tensor]:
    """What a partition makes of the model in a round."""
    rng = torch.Generator().manual_seed(1000 * number + partition)
    # Sorted, for the models compared come from files too, with their entries in another order.
    found = sorted(received.items())
    return {name: t + 0.1 * torch.randn(t.shape, generator=rng) for name, t in found}


def examples(partition: int) -> int:
    """Of a partition: its weight, and what tells it apart at the server."""
    return 10 + partition


def round_of(message: Message) -> int:
    """The round that a message belongs to."""
    return int(str(message.content.config_records["config"]["server-round"]))


def misbehaviour(partition: int, number: int) -> str:
    """What a partition does in a round, other than what it should; empty for nothing."""
    what = MISBEHAVIOUR.get(partition, "")
    return what if number == 2 or (number > 2 and what != "crash") else ""


def guard(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """The defence, which is in the run's config, with settings that are only here."""
    config = context.run_config
    noise, seed = float(config["noise-multiplier"]), int(config["seed"])
    mod = GuardMod(
        wire=True,
        client_dp=ClientDP(noise, 1.0) if noise else None,
        simulation_seed=seed or None,
    )
    return mod(message, context, call_next)


def residual(context: Context) -> float:
    """The norm of what error feedback owes."""
    record = context.state.array_records.get("gradguard.arrays", ArrayRecord())
    owed = [t.flatten() for name, t in tensors_of(record).items() if "memory" in name]
    return float(torch.cat(owed).norm()) if owed else 0.0


def watch(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """What a client remembers before and after a message, and in which process it is."""
    number, partition = round_of(message), int(context.node_config["partition-id"])
    before, reply = residual(context), call_next(message, context)
    facts = {
        "partition": partition,
        "round": number,
        "pid": os.getpid(),
        "gradguard": gradguard.__file__,
        "residual before": before,
        "residual after": residual(context),
    }
    folder = Path(str(context.run_config["folder"]))
    (folder / f"{number}-{partition}.json").write_text(json.dumps(facts))
    return reply


def tamper(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """What leaves in place of a defended reply."""
    number, partition = round_of(message), int(context.node_config["partition-id"])
    reply = call_next(message, context)
    what = misbehaviour(partition, number)
    if what == "replay":
        for key in ("arrays", "gradguard"):
            reply.content[key] = context.state[f"old {key}"]
    elif what in ("truncated", "nan sent"):
        name, (sent,) = "arrays", reply.content.array_records["arrays"].values()
        payload = sent.data[: len(sent.data) // 2]
        if what == "nan sent":
            payload = wire.encode({n: t * torch.nan for n, t in initial_model().items()})
        broken = Array("uint8", (len(payload),), sent.stype, payload)
        reply.content[name] = ArrayRecord({"gradguard.wire": broken})
    elif MISBEHAVIOUR.get(partition) == "replay":
        for key in ("arrays", "gradguard"):
            context.state[f"old {key}"] = reply.content[key]
    return reply


@client.train(mods=[tamper, watch, guard])
def fit(message: Message, context: Context) -> Message:
    """Local training."""
    number, partition = round_of(message), int(context.node_config["partition-id"])
    (record,) = message.content.array_records.values()
    model = trained(tensors_of(record), partition, number)
    what = misbehaviour(partition, number)
    if what == "crash":
        raise RuntimeError("this client has crashed")
    if what == "nan":
        model["bias"][0] = torch.nan
    content = RecordDict(
        {
            "arrays": record_of(model),
            "metrics": MetricRecord({"num-examples": examples(partition)}),
        }
    )
    return Message(content, reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Three rounds under observation."""
    folder, clients = Path(str(context.run_config["folder"])), int(context.run_config["wait-for"])
    average = FedAvg(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
    result = Observer(DecodingStrategy(average), folder / "observed").start(
        grid=grid, initial_arrays=record_of(initial_model()), num_rounds=3
    )
    facts = {
        "gradguard": gradguard.__file__,
        "metrics": {number: dict(m) for number, m in result.train_metrics_clientapp.items()},
        "model": {name: t.tolist() for name, t in tensors_of(result.arrays).items()},
    }
    (folder / "server.json").write_text(json.dumps(facts))
