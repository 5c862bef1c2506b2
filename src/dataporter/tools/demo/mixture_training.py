"""One rank of the mixture demo's training, run in a separate process: trains, logs, resumes.

Started again in a directory that holds a checkpoint, it resumes from it, with any mixture and in a
world of any size.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dataporter.checkpoints.atomic import load_latest, save_atomically
from dataporter.datasets.mixture import Mixture
from dataporter.loader.loader import ResumableDataLoader
from dataporter.tools.demo.steps import Step, write_step
from dataporter.tools.demo.training import CHECKPOINT, SEED

__all__ = ["CHECKPOINT_EVERY", "CONTEXT", "loader_of"]

# Steps between checkpoints.
CHECKPOINT_EVERY = 10
# Bytes that the model sees of a sample, which has one more to predict.
CONTEXT = 48
_GLOBAL_BATCH_SIZE = 32
_TIMEOUT = timedelta(seconds=60)


def loader_of(
    texts: Mapping[str, Any], weights: Mapping[str, float], epoch: int, **options: Any
) -> ResumableDataLoader[Any]:
    """The loader of every run: a mixture of those texts that have a weight.

    Args:
        texts: by name, arrays of bytes; numbered over all of them in this order.
        weights: by name, for some of the texts.
        epoch: number of samples in an epoch.
        options: of the loader.
    """
    begin, sources = 0, {}
    for name, rows in texts.items():
        sources[name] = {"text": rows, "sample": np.arange(begin, begin + len(rows))}
        begin += len(rows)
    mixture = Mixture({name: sources[name] for name in weights}, weights, stopping=epoch)
    options = {"batch_size": _GLOBAL_BATCH_SIZE, "shuffle": True, "seed": SEED, **options}
    return ResumableDataLoader(mixture, **options)


class TinyGPT(nn.Module):
    """Predicts each next byte."""

    mask: Tensor

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, width)
        self.places = nn.Embedding(CONTEXT, width)
        self.block = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.head = nn.Linear(width, 256)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next byte at each place."""
        hidden = self.bytes(tokens) + self.places(torch.arange(CONTEXT))
        logits: Tensor = self.head(self.block(hidden, self.mask, is_causal=True))
        return logits


def train(
    directory: Path,
    data: Path,
    log_path: Path,
    weights: Mapping[str, float],
    rank: int,
    world_size: int,
    steps: int,
) -> None:
    """Train to the last step, from the checkpoint in ``directory`` if there is one."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    started_by = os.getppid()
    if world_size > 1:
        rendezvous = f"file://{log_path.parent}/rendezvous"
        dist.init_process_group("gloo", rendezvous, _TIMEOUT, world_size, rank)
    with np.load(data) as file:
        texts = {name: file[name] for name in file.files}
    loader = loader_of(
        texts,
        weights,
        steps * _GLOBAL_BATCH_SIZE,
        batch_size=_GLOBAL_BATCH_SIZE // world_size,
    )
    gpt = TinyGPT()
    model = DistributedDataParallel(gpt) if world_size > 1 else gpt
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    checkpoint_path = directory / CHECKPOINT
    if checkpoint_path.exists():
        checkpoint = load_latest(checkpoint_path)
        gpt.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loader.load_state_dict(checkpoint["loader"])
        lines = [str(warning.message) for warning in caught]
        log_path.with_suffix(".said.json").write_text(json.dumps(lines))

    with log_path.open("a") as log:
        for batch in loader:
            tokens = batch["text"].long()
            logits = model(tokens[:, :-1]).transpose(1, 2)
            loss = nn.functional.cross_entropy(logits, tokens[:, 1:])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch left it so
            optimizer.step()
            done = Step(
                epoch=loader.epoch,
                step=loader.step - 1,
                samples=tuple(batch["sample"].tolist()),
                digest=hashlib.sha256(batch["text"].numpy().tobytes()).hexdigest(),
                loss=float(loss.item()).hex(),
            )
            write_step(log, done)
            if rank == 0 and loader.step % CHECKPOINT_EVERY == 0:
                checkpoint = {
                    "model": gpt.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "loader": loader.state_dict(),
                    "trained_steps": loader.step,
                }
                save_atomically(checkpoint, checkpoint_path)
            if os.getppid() != started_by:
                raise SystemExit("the process that started this training run is gone")
    if world_size > 1:
        dist.barrier()


def main() -> None:
    """Read the arguments that the demo passes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="the checkpoint's directory")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--weights", type=json.loads, required=True)
    for number in ("rank", "world-size", "steps"):
        parser.add_argument(f"--{number}", type=int, required=True)
    given = parser.parse_args()
    train(
        given.directory,
        given.data,
        given.log,
        given.weights,
        given.rank,
        given.world_size,
        given.steps,
    )
    # As in world_training: the interpreter's end may meet a thread of gloo.
    os._exit(0)


if __name__ == "__main__":
    main()
