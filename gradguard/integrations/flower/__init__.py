"""Flower: one defence as a client mod, and a strategy wrapper that reads what it sends.

On the client, after whatever trains::

    top_k = Defense("top-k 5 %", transform=ErrorFeedback(KeepTopK(0.05)))

    @app.train(mods=[GuardMod(top_k, wire=True)])
    def train(message, context): ...

On the server, around any strategy: ``DecodingStrategy(FedAvg(...))``.
"""

try:
    import flwr.serverapp.strategy as _strategy
except ImportError as error:
    raise ImportError(
        "Flower's integration needs Flower 1.41: pip install 'gradguard[flower]'"
    ) from error

from gradguard.integrations.flower.decoding_strategy import DecodingStrategy as DecodingStrategy
from gradguard.integrations.flower.dp_sgd import dp_sgd as dp_sgd
from gradguard.integrations.flower.guard_mod import GuardMod as GuardMod
from gradguard.integrations.flower.metrics import aggregate_metrics as aggregate_metrics
from gradguard.integrations.flower.observer import Observer as Observer

del _strategy
