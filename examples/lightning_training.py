"""Train with Lightning; stop with Ctrl-C or kill it, start again, resume at the next sample.

python examples/lightning_training.py [directory]
"""

import sys
import time
from typing import Any

import torch
from lightning import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

from dataporter import ResumableDataLoader

directory = sys.argv[1] if len(sys.argv) > 1 else "lightning-checkpoints"


class Digits(LightningModule):
    """A small network and its training data."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def train_dataloader(self) -> ResumableDataLoader[Any]:
        digits = load_digits()
        pixels = torch.tensor(digits.data / 16, dtype=torch.float32)
        dataset = TensorDataset(pixels, torch.tensor(digits.target), torch.arange(len(pixels)))
        return ResumableDataLoader(dataset, batch_size=32, shuffle=True)

    def training_step(self, batch: Any, batch_index: int) -> Any:
        images, labels, samples = batch
        loss = nn.functional.cross_entropy(self.model(images), labels)
        first = ", ".join(map(str, samples[:4].tolist()))
        print(
            f"epoch {self.current_epoch}, step {batch_index}: loss {loss:.6f}, samples {first}, ..."
        )
        time.sleep(0.02)  # training is fast; this leaves time for Ctrl-C
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters())


seed_everything(0)
trainer = Trainer(
    accelerator="cpu",
    max_epochs=5,
    callbacks=[ModelCheckpoint(directory, every_n_train_steps=10, save_last=True)],
    logger=False,
    enable_progress_bar=False,
)
trainer.fit(Digits(), ckpt_path="last")  # the last checkpoint, if there is one
