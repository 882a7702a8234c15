"""Your own model and data, your own defences: what they cost and what still leaks."""

import torch
from sklearn.datasets import load_wine
from torch import nn
from torch.utils.data import TensorDataset

from gradguard import AddGaussian, ClipByGlobalNorm, Defense, KeepTopK
from gradguard.evaluation import AttackSpec, Study, TrainingSpec, evaluate, from_dataset

features, labels = (torch.tensor(part) for part in load_wine(return_X_y=True))
features = ((features - features.mean(0)) / features.std(0)).float()
data = from_dataset(TensorDataset(features, labels), classes=3)


def model(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(input_shape[0], 32), nn.ReLU(), nn.Linear(32, num_classes))


study = Study(
    (
        Defense("none", transform=[]),
        Defense("top-k 1 %", transform=KeepTopK(0.01)),
        Defense("clip 1, noise 0.1", transform=[ClipByGlobalNorm(1.0), AddGaussian(0.1)]),
    ),
    training=TrainingSpec(steps=100, batch_size=16, seeds=2),
    attack=AttackSpec(batch_sizes=(8,), compositions=("iid",), trials=40, simulated=100),
)
report = evaluate(study, data=data, factory=model)
for row in report.rows:
    low, high = row.worst_ci
    print(
        f"{row.defense:18} {row.stage:8} accuracy {row.accuracy:.2f}  {row.worst_attack} reads "
        f"{row.worst_asr:.2f} [{low:.2f}, {high:.2f}], a blind guess {row.blind_asr:.2f}"
    )
