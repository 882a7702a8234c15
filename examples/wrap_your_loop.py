"""A training loop with a defence in front of its optimizer, and the same defence under attack."""

import torch
from sklearn.datasets import load_digits
from torch import nn

from gradguard import ClipByGlobalNorm, Defense, KeepTopK, guard

digits = load_digits(return_X_y=True)
images, labels = (torch.tensor(part) for part in digits)
images = images.float().div(16).reshape(-1, 1, 8, 8)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

defense = Defense("clip, then top-k 1 %", transform=[ClipByGlobalNorm(1.0), KeepTopK(0.01)])
optimizer = guard(torch.optim.SGD(model.parameters(), lr=0.5), defense.transform, model=model)

for _ in range(200):
    batch = torch.randint(len(labels), (64,))
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
    loss.backward()
    optimizer.step()  # transforms every gradient first, or raises
sent = sum(int((p.grad != 0).sum()) for p in model.parameters())
print(f"loss {loss.item():.2f}; the last step used {sent} of {2410} coordinates")

# A client that sends gradients instead of stepping: the defended message, by parameter name.
optimizer.zero_grad()
nn.functional.cross_entropy(model(images[:8]), labels[:8]).backward()
message = optimizer.release()
print(f"message: {', '.join(message)}")
