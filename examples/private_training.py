"""Two rounds of DP-SGD on a client: top-k after the noise, one ledger, a budget, certificates."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradguard import KeepTopK
from gradguard.dp import PrivacyLedger, make_private
from gradguard.evaluation.certificates.record import noise_for_bound, per_record_bound

images, labels = load_digits(return_X_y=True)
data = TensorDataset(torch.tensor(images / 16).float(), torch.tensor(labels))
model: nn.Module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

# At most 40 % of labels named from one message, where a guess is right in 10 %.
noise = noise_for_bound(prior=0.1, bound=0.4)
stored = PrivacyLedger(max_epsilon=8.0, delta=1e-5).to_json()  # a file on a real client
for number in (1, 2):
    ledger = PrivacyLedger.from_json(stored)
    training = make_private(
        model,
        torch.optim.SGD(model.parameters(), lr=0.5),
        DataLoader(data, batch_size=64),
        noise_multiplier=noise,
        max_grad_norm=1.0,
        after=KeepTopK(0.1),
        ledger=ledger,
    )
    for inputs, targets in training.loader:
        training.optimizer.zero_grad()
        training.criterion(training.model(inputs), targets).backward()
        training.optimizer.step()
    stored = ledger.to_json()
    model = training.model
    print(f"round {number}: {ledger.releases} releases, {ledger.epsilon(1e-5):.2f} of epsilon 8")

with torch.no_grad():
    hits = (model(data.tensors[0]).argmax(dim=1) == data.tensors[1]).float().mean()
rate = training.sample_rate
run = per_record_bound(0.1, noise, releases=ledger.releases, sample_rate=rate)
print(f"accuracy {hits:.2f}; noise multiplier {noise:.2f}")
print(f"a record's label, from one message: named with at most {per_record_bound(0.1, noise):.0%}")
print(f"from all messages, if nobody knows who took part when: at most {run:.0%}")
