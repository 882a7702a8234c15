"""A Flower server that reads what guarded clients send; the strategy inside may be any."""

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Result

from digits_app.task import Net, accuracy
from gradguard.integrations.flower import DecodingStrategy

UNITS = {"dp-sgd": "example", "client-dp": "client"}

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Federated averaging, and a table of what it cost."""
    torch.manual_seed(0)
    result = DecodingStrategy(FedAvg(fraction_evaluate=0.0)).start(
        grid=grid,
        initial_arrays=ArrayRecord(Net().state_dict()),
        num_rounds=context.run_config["num-server-rounds"],
        evaluate_fn=evaluate,
    )
    print(table(context.run_config["mode"], result), flush=True)


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Accuracy on images that no client has."""
    model = Net()
    model.load_state_dict(arrays.to_torch_state_dict())
    return MetricRecord({"accuracy": accuracy(model)})


def table(mode: str, result: Result) -> str:
    """A line for every round: what the model has learnt, what was sent, and what it revealed."""
    lines = ["", f"{mode:<12}  round  accuracy  bytes/client  dense bytes  epsilon"]
    for number, sent in result.train_metrics_clientapp.items():
        learnt = result.evaluate_metrics_serverapp[number]["accuracy"]
        line = (
            f"{'':12}  {number:>5}  {learnt:>8.3f}  {sent['gradguard.bytes.sent']:>12,.0f}"
            f"  {sent['gradguard.bytes.dense']:>11,.0f}"
        )
        if mode in UNITS:
            line += (
                f"  {sent['gradguard.epsilon']:.3f} at delta {sent['gradguard.delta']:g} for one"
                f" {UNITS[mode]}, after {sent['gradguard.releases']} releases"
            )
        lines.append(line)
    return "\n".join(lines)
