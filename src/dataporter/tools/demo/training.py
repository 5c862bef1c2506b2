"""The demo's training script, run in a separate process: trains, logs every step, checkpoints.

Started again in a directory that holds a checkpoint, it resumes from it. Both loaders use the same
script; only `build_loader` distinguishes them.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dataporter.checkpoints.atomic import save_atomically
from dataporter.loader.create import create_resumable_dataloader
from dataporter.loader.loader import ResumableDataLoader
from dataporter.tools.demo.steps import Step, write_step

__all__ = ["BATCH_SIZE", "CHECKPOINT", "CHECKPOINT_EVERY", "LoaderName"]

BATCH_SIZE = 32
CHECKPOINT = "checkpoint.pt"
# Steps between checkpoints, within an epoch.
CHECKPOINT_EVERY = 20
SEED = 20

LoaderName = Literal["dataporter", "plain"]
Batch = tuple[Tensor, Tensor, Tensor]


class AugmentedDigits(Dataset[tuple[Tensor, int, int]]):
    """The digits, each shifted, made noisy and brightened or darkened at random.

    Each of the three augmentations draws from a different global generator.

    Args:
        path: an ``.npz`` file with ``images`` (float32, of shape (n, 8, 8)) and ``labels``.
    """

    def __init__(self, path: Path) -> None:
        with np.load(path) as digits:
            self.images, self.labels = digits["images"], digits["labels"]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        shift = random.randint(-1, 1), random.randint(-1, 1)
        shifted = np.roll(self.images[index], shift, axis=(0, 1))
        noisy = shifted + np.random.normal(0, 0.05, shifted.shape).astype(np.float32)
        brightness = 0.75 + 0.5 * torch.rand(())
        return torch.from_numpy(noisy)[None] * brightness, int(self.labels[index]), index


class HandResumedLoader:
    """A plain DataLoader with the resume logic that training scripts usually contain.

    The checkpoint says how many steps of the epoch were done. After the restart the epoch starts
    again in a new order, and runs for the number of steps that were missing.
    """

    def __init__(self, loader: DataLoader[Batch]) -> None:
        self.loader = loader
        self.epoch = self.step = 0

    def __iter__(self) -> Iterator[Batch]:
        for batch in islice(self.loader, len(self.loader) - self.step):
            self.step += 1
            yield batch
        self.epoch, self.step = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """The number of the next step."""
        return {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume at that step, in whatever order the epoch has this time."""
        self.epoch, self.step = state["epoch"], state["step"]


def build_loader(
    name: LoaderName, dataset: AugmentedDigits, workers: int
) -> ResumableDataLoader[Batch] | HandResumedLoader:
    """The loader under test, or the plain one."""
    if name == "plain":
        plain = DataLoader(dataset, BATCH_SIZE, shuffle=True, num_workers=workers)
        return HandResumedLoader(cast("DataLoader[Batch]", plain))
    return create_resumable_dataloader(dataset, BATCH_SIZE, shuffle=True, num_workers=workers)


def build_model() -> nn.Module:
    """A small network. Its dropout draws from the training process's global generator."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.25),
        nn.Linear(32 * 4 * 4, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def train(
    directory: Path, data: Path, log_path: Path, loader_name: LoaderName, workers: int, epochs: int
) -> None:
    """Train to the last epoch, from the checkpoint in ``directory`` if there is one."""
    # Equal losses must mean equal bits, so sums need a fixed order.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    started_by = os.getppid()

    loader = build_loader(loader_name, AugmentedDigits(data), workers)
    model = build_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    trained_steps = 0

    checkpoint_path = directory / CHECKPOINT
    if checkpoint_path.exists():
        checkpoint = torch.load(checkpoint_path, weights_only=True)
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        loader.load_state_dict(checkpoint["loader"])
        torch.set_rng_state(checkpoint["generator"])
        trained_steps = checkpoint["trained_steps"]

    with log_path.open("a") as log:
        while loader.epoch < epochs:
            for batch in loader:
                images, labels, samples = batch
                loss = nn.functional.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # torch left it so
                optimizer.step()
                trained_steps += 1
                done = Step(
                    epoch=loader.epoch,
                    step=loader.step - 1,
                    samples=tuple(samples.tolist()),
                    digest=digest_of(batch),
                    loss=float(loss.item()).hex(),
                )
                write_step(log, done)
                if loader.step % CHECKPOINT_EVERY == 0:
                    checkpoint = {
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "loader": loader.state_dict(),
                        "generator": torch.get_rng_state(),
                        "trained_steps": trained_steps,
                    }
                    save_atomically(checkpoint, checkpoint_path, keep=1)
                if os.getppid() != started_by:
                    raise SystemExit("the process that started this training run is gone")


def digest_of(batch: Batch) -> str:
    """SHA-256 over the bytes of every tensor of a batch."""
    found = hashlib.sha256()
    for tensor in batch:
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()


def main() -> None:
    """Read the arguments that the demo passes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="the checkpoint's directory")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--loader", choices=("dataporter", "plain"), required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    given = parser.parse_args()
    train(given.directory, given.data, given.log, given.loader, given.workers, given.epochs)


if __name__ == "__main__":
    main()
