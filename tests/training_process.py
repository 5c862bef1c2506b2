"""A training run as people write one: logs what it is given, and leaves checkpoints behind.

Run as a program, it resumes from the last checkpoint of its directory:

    python training_process.py DIRECTORY STRATEGY WORKERS CHECKPOINT_EVERY

where STRATEGY is one of the loader's, or a kind of stream.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from example_streams import KINDS
from subjects import digest, ids
from torch import nn

from dataporter import LinearWeights, Mixture, ResumableDataLoader

DRAWN = ("python", "numpy", "torch", "explicit")
LENGTH, BATCH_SIZE, EPOCHS = 40, 4, 6
STEPS = EPOCHS * LENGTH // BATCH_SIZE


class Augmented(torch.utils.data.Dataset[dict[str, Any]]):
    """Features that are shifted, scaled and masked by each of the global generators."""

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> dict[str, Any]:
        features = torch.arange(6.0).add(index).div(LENGTH)
        features += random.gauss(0, 0.1)
        features *= torch.from_numpy(np.random.uniform(0.9, 1.1, 6).astype(np.float32))
        features[torch.rand(6) < 0.2] = 0
        return {"index": index, "features": features}


def mixture() -> Mixture:
    """Two sources whose weights move, of which one ends in the middle of an epoch."""
    weights = LinearWeights([(0, {"a": 3, "b": 1}), (2 * LENGTH, {"a": 1, "b": 1})])
    sources = {"a": Augmented(), "b": Augmented()}
    return Mixture(sources, weights, stopping=LENGTH, max_passes={"b": 2})


def features_of(batch: dict[str, Any]) -> torch.Tensor:
    """What the model sees: of a stream, all that its samples have drawn."""
    if "features" in batch:
        return batch["features"]
    drawn = [batch[name].float().reshape(len(ids(batch)), -1) for name in DRAWN]
    return torch.cat(drawn, dim=1)


def training(
    checkpoint: Path, strategy: str, workers: int, every: int
) -> Iterator[dict[str, int | str]]:
    """Train to the end from ``checkpoint``, if there is one; yields each step's record."""
    torch.set_num_threads(1)
    torch.manual_seed(11)
    # Dropout draws from the training process's generator, which the loader must leave alone.
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))
    arguments: dict[str, Any] = {"seed": 5, "num_workers": workers}
    if strategy == "mixture":
        loader = ResumableDataLoader(mixture(), BATCH_SIZE, shuffle=True, **arguments)
    elif strategy in KINDS:
        loader = ResumableDataLoader(KINDS[strategy](LENGTH), BATCH_SIZE, **arguments)
    else:
        loader = ResumableDataLoader(
            Augmented(), BATCH_SIZE, shuffle=True, strategy=strategy, **arguments
        )
    done = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        loader.load_state_dict(saved["loader"])
        torch.set_rng_state(saved["generator"])
        done = saved["done"]

    while done < STEPS:
        for batch in loader:
            target = batch["index"] % 2
            loss = nn.functional.cross_entropy(model(features_of(batch)), target)
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            # torch.optim would import its compiler: seconds, in each of many lives.
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients):
                    parameter -= 0.1 * gradient
            yield {
                "done": done,
                "epoch": loader.epoch,
                "ids": str(ids(batch)),
                "batch": digest(batch),
                "loss": loss.item().hex(),
            }
            done += 1
            if done % every == 0:
                written = checkpoint.with_suffix(f".{os.getpid()}")
                torch.save(
                    {
                        "model": model.state_dict(),
                        "loader": loader.state_dict(),
                        "generator": torch.get_rng_state(),
                        "done": done,
                    },
                    written,
                )
                os.replace(written, checkpoint)


def life(directory: Path, strategy: str, workers: int, every: int) -> None:
    """Train to the end, or until a kill, and log each step."""
    checkpoint = directory / "checkpoint.pt"
    with (directory / f"{time.time_ns()}.jsonl").open("w", buffering=1) as log:
        for record in training(checkpoint, strategy, workers, every):
            print(json.dumps(record), file=log)
            time.sleep(0.01)  # a step takes its time, so that a kill lands at any part of it
        print(json.dumps("finished"), file=log)


if __name__ == "__main__":
    life(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
