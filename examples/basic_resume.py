"""Train on the handwritten digits; stop with Ctrl-C, start again, resume at the next sample.

python examples/basic_resume.py [checkpoint.pt]
"""

import os
import sys
import time

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

from dataporter import create_resumable_dataloader, save_atomically

num_epochs = 5
path = sys.argv[1] if len(sys.argv) > 1 else "checkpoint.pt"

torch.manual_seed(0)
digits = load_digits()
pixels = torch.tensor(digits.data / 16, dtype=torch.float32)
dataset = TensorDataset(pixels, torch.tensor(digits.target), torch.arange(len(pixels)))
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters())

dataloader = create_resumable_dataloader(dataset, batch_size=32, shuffle=True)


def save_checkpoint() -> None:
    """Save everything; a kill at any moment leaves a complete checkpoint."""
    checkpoint = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "dataloader": dataloader.state_dict(),
    }
    save_atomically(checkpoint, path, keep=1)


if os.path.exists(path):
    checkpoint = torch.load(path)
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    dataloader.load_state_dict(checkpoint["dataloader"])
    print(f"Resuming from {path}: epoch {dataloader.epoch}, step {dataloader.step}.")
else:
    print(f"Starting. Stop with Ctrl-C at any time; {path} is saved every 10 steps.")

try:
    # After a resume the first pass covers the rest of the interrupted epoch.
    for epoch in dataloader.epochs(num_epochs):
        for images, labels, samples in dataloader:
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            first = ", ".join(map(str, samples[:4].tolist()))
            print(
                f"epoch {epoch}, step {dataloader.step - 1}: loss {loss:.6f}, samples {first}, ..."
            )
            if dataloader.step % 10 == 0:
                save_checkpoint()
            time.sleep(0.02)  # training is fast; this leaves time for Ctrl-C
except KeyboardInterrupt:
    print("Stopped. Start again to resume.")
    sys.exit(130)

os.remove(path)
print(f"Finished {num_epochs} epochs. Removed {path}, so the next run starts from scratch.")
