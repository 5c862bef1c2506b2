"""Train on handwritten digits with Accelerate, stop it at any time, and start it again.

    python examples/accelerate_training.py [CHECKPOINT_DIRECTORY]
    torchrun --nproc-per-node 2 examples/accelerate_training.py [CHECKPOINT_DIRECTORY]

It resumes at the exact next sample, also with a different number of processes. It needs
scikit-learn, but no network.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

from dataporter import ResumableDataLoader

EPOCHS, BATCH_SIZE, STEPS_BETWEEN_CHECKPOINTS = 3, 32, 10


def save(accelerator: Accelerator, folder: Path) -> None:
    """Replace the checkpoint once the new one is complete."""
    new = folder.with_suffix(".new")
    accelerator.save_state(str(new))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
    accelerator.wait_for_everyone()


def main() -> None:
    """Train to the end, from the last checkpoint if there is one."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "accelerate-checkpoint")
    torch.manual_seed(1)
    digits = load_digits()
    dataset = TensorDataset(
        torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    )
    loader = ResumableDataLoader(dataset, BATCH_SIZE, shuffle=True, seed=1)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters())

    accelerator = Accelerator()
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    if folder.exists():
        accelerator.load_state(str(folder))  # also loads the loader's state

    for epoch in loader.epochs(EPOCHS):
        for images, labels in loader:
            step = loader.step  # within this epoch, also after a resume mid-epoch
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(images), labels)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            accelerator.print(f"epoch {epoch}, step {step}: loss {loss.item():.6f}")
            if step % STEPS_BETWEEN_CHECKPOINTS == 0:
                save(accelerator, folder)
    accelerator.print("Done.")
    accelerator.end_training()


if __name__ == "__main__":
    main()
