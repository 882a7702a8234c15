"""A Flower client whose replies leave it defended."""

from contextlib import nullcontext

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from digits_app.task import Net, client_loader, train
from gradguard import Defense, ErrorFeedback, KeepTopK
from gradguard.dp import DPSGD, ClientDP
from gradguard.integrations.flower import GuardMod, dp_sgd

TOP_K = Defense("top-k 5 %", transform=ErrorFeedback(KeepTopK(0.05)))
# More than 5 %, for noise makes the coordinates alike.
TOP_20 = ErrorFeedback(KeepTopK(0.2))
PRIVATE = Defense("DP-SGD", transform=TOP_20, dp=DPSGD(1.0, 1.0, delta=1e-4))
GUARDS = {
    "plain": GuardMod(Defense("none", transform=())),
    "top-k": GuardMod(TOP_K, wire=True),
    "top-k-dense": GuardMod(TOP_K),
    # DP-SGD protects parameters, and the model knows which entries are.
    "dp-sgd": GuardMod(PRIVATE, wire=True, model=Net),
    "client-dp": GuardMod(TOP_K, wire=True, client_dp=ClientDP(1.0, 1.0)),
}

app = ClientApp()


def guard(message: Message, context: Context, call_next) -> Message:
    """The mod of this run's mode; an app with one defence says ``mods=[GuardMod(...)]`` below."""
    return GUARDS[context.run_config["mode"]](message, context, call_next)


@app.train(mods=[guard])
def fit(message: Message, context: Context) -> Message:
    """A round of local training."""
    node, config = context.node_config, context.run_config
    loader = client_loader(node["partition-id"], node["num-partitions"], config["batch-size"])
    # The same batches in every run, but for DP-SGD, which keeps them secret.
    torch.manual_seed(1000 * message.content["config"]["server-round"] + node["partition-id"])
    model = Net()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=config["learning-rate"], momentum=0.9)

    private = config["mode"] == "dp-sgd"
    parts = model, optimizer, loader
    with dp_sgd(context, PRIVATE, *parts) if private else nullcontext(parts) as training:
        train(*training, config["local-epochs"])

    content = RecordDict(
        {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": len(loader.dataset)}),
        }
    )
    return Message(content, reply_to=message)
