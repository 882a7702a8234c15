"""A training loop that attacks itself: what its messages give away, measured before they leave."""

import torch
from torch import nn

from gradguard import AddGaussian, ClipByGlobalNorm, Defense, KeepTopK, guard
from gradguard.evaluation import LeakageError, Monitor, load_digits

digits = load_digits()
images, labels = digits.images[600:], digits.labels[600:]
public = digits.images[:600], digits.labels[:600]  # what a server may have too


def train(defense: Defense, *, steps: int, limit: float) -> None:
    """SGD on batches of 8; every 40 steps the monitor plays the server."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = guard(torch.optim.SGD(model.parameters(), lr=0.1), defense.transform, model=model)
    monitor = Monitor(
        optimizer,
        model=model,
        auxiliary=public,
        batch_size=8,
        every=40,
        action="block",
        max_advantage=limit,
        attackers=["LLG", "BiasCount", "TemplateRegression(head)"],
        log=lambda leakage: print(f"{defense.name}: {leakage}"),
    )
    for _ in range(steps):
        batch = torch.randint(len(labels), (8,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        monitor.check()  # raises before anything is sent
        optimizer.step()
    print(f"{defense.name}: {steps} steps were taken")


for defense in (
    Defense("top-k 1 %", transform=KeepTopK(0.01)),
    Defense("clip 0.5, noise 0.2", transform=[ClipByGlobalNorm(0.5), AddGaussian(0.2)]),
):
    try:
        train(defense, steps=81, limit=0.5)
    except LeakageError as error:
        print(f"{defense.name}: {str(error).partition(':')[0]}")
