"""A training with Lightning's Fabric, on any number of ranks, saved by `fabric.save`."""

from __future__ import annotations

import argparse
import os
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import nn

from benchmarks.frameworks.journal import Journal
from benchmarks.frameworks.loop import end_of_rank, parser_of_program
from benchmarks.frameworks.subject import EPOCHS, build_loader, build_model

__all__ = ["train"]


def train(options: argparse.Namespace) -> None:
    """Train to the end, from the last checkpoint if there is one."""
    torch.set_num_threads(1)
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    fabric = Fabric(accelerator="cpu", devices=ranks, strategy="ddp" if ranks > 1 else "auto")
    fabric.launch()
    fabric.seed_everything(1, verbose=False)
    model = build_model()
    model, optimizer = fabric.setup(model, torch.optim.Adam(model.parameters()))
    loader = build_loader(options.loader, num_workers=options.workers)
    wrapped: Any = fabric.setup_dataloaders(loader)
    state: dict[str, Any] = {"model": model, "optimizer": optimizer, "done": 0, "epoch": 0}
    if options.loader != "torch":
        state["loader"] = wrapped

    checkpoints = options.home / "checkpoints"
    saved = sorted(int(path.stem.removeprefix("step_")) for path in checkpoints.glob("*.ckpt"))
    if saved:
        fabric.load(checkpoints / f"step_{saved[-1]}.ckpt", state)

    journal = Journal(options.home, options.attempt, fabric.global_rank, options.kill_at)
    for epoch in range(state["epoch"], EPOCHS):
        for batch in wrapped:
            loss = nn.functional.cross_entropy(model(batch["pixels"]), batch["label"])
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
            journal.write(state["done"], epoch, batch, loss.detach())
            state |= {"done": state["done"] + 1, "epoch": epoch}
            if state["done"] % options.every == 0:
                fabric.save(checkpoints / f"step_{state['done']}.ckpt", state)
    end_of_rank()


if __name__ == "__main__":
    train(parser_of_program(__doc__ or "").parse_args())
