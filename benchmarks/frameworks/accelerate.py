"""A training with Accelerate, on any number of processes, saved by `save_state`."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch import nn

from benchmarks.frameworks.journal import Journal
from benchmarks.frameworks.loop import end_of_rank, parser_of_program
from benchmarks.frameworks.subject import BATCH_SIZE, EPOCHS, build_loader, build_model

__all__ = ["train"]


def train(options: argparse.Namespace) -> None:
    """Train to the end, from the last checkpoint if there is one."""
    torch.set_num_threads(1)
    theirs = options.loader != "dataporter"
    set_seed(1)
    # Built first, as in most scripts: no process group is initialised yet.
    loader: Any = build_loader(
        options.loader if not theirs else "torch",
        batch_size=options.batch_size,
        num_workers=options.workers,
    )
    accelerator = Accelerator(
        cpu=True,
        gradient_accumulation_steps=options.accumulate,
        dataloader_config=DataLoaderConfiguration(
            split_batches=options.split_batches,
            use_seedable_sampler=theirs,
            use_stateful_dataloader=options.loader == "torchdata",
        ),
    )
    model = build_model()
    optimizer = torch.optim.Adam(model.parameters())
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    checkpoints = options.home / "checkpoints"
    saved = sorted(int(folder.name.removeprefix("step_")) for folder in checkpoints.glob("step_*"))
    done = first = skipped = 0
    if saved:
        done = saved[-1]
        accelerator.load_state(checkpoints / f"step_{done}")
        first, skipped = divmod(done, len(loader))
        if options.loader == "dataporter":
            first = loader.epoch

    journal = Journal(options.home, options.attempt, accelerator.process_index, options.kill_at)
    for epoch in range(first, EPOCHS):
        batches = loader
        if theirs:
            loader.set_epoch(epoch)
            if options.loader == "torch" and epoch == first and skipped:
                batches = skip_first_batches(loader, skipped)
        for batch in batches:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(batch["pixels"]), batch["label"])
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            journal.write(done, epoch, batch, loss.detach())
            done += 1
            if done % options.every == 0:
                accelerator.save_state(checkpoints / f"step_{done}")
    end_of_rank()


if __name__ == "__main__":
    parser = parser_of_program(__doc__ or "")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE)
    parser.add_argument("--split-batches", action="store_true")
    train(parser.parse_args())
