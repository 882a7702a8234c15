"""Every client trains one step on a batch of the study's composition, and records its labels."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch.nn.functional import cross_entropy

from gradguard.evaluation import Study
from gradguard.evaluation.batches import Batch, draw_batches
from gradguard.evaluation.running.bench import Bench, prepare
from gradguard.integrations.flower import DecodingStrategy, GuardMod, Observer
from gradguard.updates.recording import record_labels

CLASSES = 10

client = ClientApp()
server = ServerApp()


@functools.cache
def bench_of(study: str) -> Bench:
    """Data and models of a study; an actor that plays many clients reads them once."""
    return prepare(Study.from_toml(Path(study)))


@functools.cache
def batches_of(study: str, number: int) -> list[Batch]:
    """Batches from images that no attacker rehearses on."""
    bench = bench_of(study)
    attack = bench.study.attack
    return draw_batches(
        *(bench.data, bench.parts.scored),
        composition=attack.compositions[0],
        batch_size=attack.batch_sizes[0],
        number=number,
        seed=5,
    )


@client.train(mods=[GuardMod(wire=True)])
def fit(message: Message, context: Context) -> Message:
    """One local step; the labels are written down here, and travel nowhere."""
    run, node = context.run_config, context.node_config
    study, number = (
        str(run["study"]),
        int(str(message.content.config_records["config"]["server-round"])),
    )
    clients, rounds = int(node["num-partitions"]), int(run["num-server-rounds"])
    index = (number - 1) * clients + int(node["partition-id"])
    batch = batches_of(study, clients * rounds)[index]
    bench = bench_of(study)
    assert bench.study.client is not None
    model = bench.fresh_model(0)
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=bench.study.client.learning_rate)
    cross_entropy(model(batch.inputs), batch.labels).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    record_labels(str(run["folder"]), number, str(context.node_id), batch.labels, classes=CLASSES)
    content = RecordDict(
        {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": len(batch.labels)}),
        }
    )
    return Message(content, reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Federated averaging by a server that writes down what it is sent."""
    run = context.run_config
    every = int(run["wait-for"])
    average = FedAvg(fraction_evaluate=0.0, min_train_nodes=every, min_available_nodes=every)
    Observer(DecodingStrategy(average), str(run["folder"])).start(
        grid=grid,
        initial_arrays=ArrayRecord(bench_of(str(run["study"])).fresh_model(0).state_dict()),
        num_rounds=int(run["num-server-rounds"]),
    )
