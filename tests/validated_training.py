"""A training with dropout and noise, and validation by loaders without a seed.

All that it draws in its own process comes from generators that its checkpoints hold. Run by a test
in a separate process, it resumes from the last checkpoint of its directory, and logs each step.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from example_streams import Generated, Sharded, Stateful
from subjects import Augmented, ids
from torch import nn

from dataporter import ResumableDataLoader, sample_rng

LENGTH, BATCH_SIZE, EPOCHS = 20, 4, 4
STEPS = EPOCHS * LENGTH // BATCH_SIZE


class Explicit(torch.utils.data.Dataset[dict[str, Any]]):
    """Draws as threads may: from ``sample_rng`` alone."""

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"index": index, "torch": torch.tensor(sample_rng().random(2), dtype=torch.float32)}


# By name: the dataset of the training, and the loader's arguments beside the number of workers.
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "map": (Augmented(LENGTH), {"shuffle": True}),
    "map, seeded": (Augmented(LENGTH), {"shuffle": True, "seed": 5}),
    "in torch's order": (Augmented(LENGTH), {"order": "torch"}),
    "persistent": (Augmented(LENGTH), {"shuffle": True, "persistent_workers": True}),
    "threads": (Explicit(), {"shuffle": True, "worker_kind": "thread"}),
    "shards": (Sharded(LENGTH), {}),
    "dataset state": (Stateful(LENGTH), {}),
    "replay": (Generated(LENGTH), {}),
    "limited": (Augmented(LENGTH), {"shuffle": True, "steps_per_epoch": 3}),
    "batch sampler": (Augmented(LENGTH), {}),
}


def training_loader(kind: str, workers: int) -> ResumableDataLoader[Any]:
    """The loader that is saved and resumed."""
    dataset, arguments = KINDS[kind]
    arguments = {**arguments, "num_workers": workers}
    if not workers:
        arguments.pop("persistent_workers", None)
    if kind == "batch sampler":
        sampler = torch.utils.data.RandomSampler(dataset)
        batches = torch.utils.data.BatchSampler(sampler, BATCH_SIZE, drop_last=False)
        return ResumableDataLoader(dataset, batch_sampler=batches, **arguments)
    return ResumableDataLoader(dataset, BATCH_SIZE, **arguments)


def training(checkpoint: Path, kind: str, workers: int, every: int) -> Iterator[dict[str, Any]]:
    """Train to the end from ``checkpoint``, if there is one; yields each step's record."""
    torch.set_num_threads(1)
    torch.manual_seed(11), np.random.seed(12), random.seed(13)
    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))
    loader = training_loader(kind, workers)
    # Neither has a seed or a state: one for each epoch, one for a look every few steps.
    whole = ResumableDataLoader(Augmented(6), 3, shuffle=True, num_workers=workers)
    short = ResumableDataLoader(Augmented(8), 2, shuffle=True)
    done = 0
    if checkpoint.exists():
        saved = pickle.loads(checkpoint.read_bytes())
        model.load_state_dict(saved["model"])
        loader.load_state_dict(saved["loader"])
        torch.set_rng_state(saved["torch"])
        np.random.set_state(saved["numpy"])
        random.setstate(saved["python"])
        done = saved["done"]

    while done < STEPS:
        for batch in loader:
            noise = random.gauss(0, 0.1) + np.random.standard_normal()
            target = batch["index"] % 2
            loss = nn.functional.cross_entropy(model(batch["torch"] + noise), target)
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients):
                    parameter -= 0.1 * gradient
            yield {
                "done": done,
                "epoch": loader.epoch,
                "ids": str(ids(batch)),
                "loss": loss.item().hex(),
            }
            done += 1
            if done % 3 == 0:
                list(islice(short, 2))
            if done % every == 0:
                state = {
                    "model": model.state_dict(),
                    "loader": loader.state_dict(),
                    "torch": torch.get_rng_state(),
                    "numpy": np.random.get_state(),
                    "python": random.getstate(),
                    "done": done,
                }
                written = checkpoint.with_suffix(f".{os.getpid()}")
                written.write_bytes(pickle.dumps(state))
                os.replace(written, checkpoint)
        list(whole)


def life(directory: Path, kind: str, workers: int, every: int) -> None:
    """Train to the end, or until a kill, and log each step."""
    with (directory / f"{time.time_ns()}.jsonl").open("w", buffering=1) as log:
        for record in training(directory / "checkpoint.pt", kind, workers, every):
            print(json.dumps(record), file=log)
            time.sleep(0.01)  # a step takes its time, so that a kill lands at any part of it
        print(json.dumps("finished"), file=log)
