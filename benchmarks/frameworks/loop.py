"""A loop written by hand, with a checkpoint every few steps: the standard for the frameworks."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.frameworks.journal import Journal
from benchmarks.frameworks.subject import EPOCHS, LOADERS, build_loader, build_model
from dataporter import save_atomically

__all__ = ["end_of_rank", "parser_of_program", "train"]


def parser_of_program(description: str) -> argparse.ArgumentParser:
    """The options that all programs share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--attempt", type=int, default=0)
    parser.add_argument("--kill-at", type=int)
    parser.add_argument("--loader", choices=LOADERS, default="dataporter")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--every", type=int, default=5, help="steps between checkpoints")
    return parser


def end_of_rank() -> NoReturn:
    """End this process once all ranks have called this, without Python's shutdown.

    A thread of gloo needs Python's lock to release a DDP model's last reduction. If Python shuts
    down meanwhile, it never gets the lock: torch aborts the process, or waits forever for the
    thread.
    """
    if dist.is_initialized():
        dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def train(options: argparse.Namespace) -> None:
    """Train to the end, from the last checkpoint if there is one."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    journal = Journal(options.home, options.attempt, kill_at=options.kill_at)
    checkpoint = options.home / "checkpoint.pt"
    model = build_model()
    optimizer = torch.optim.Adam(model.parameters())
    loader: Any = build_loader(options.loader, num_workers=options.workers)
    done = first = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        done, first = saved["done"], saved["epoch"]
        if "loader" in saved:
            loader.load_state_dict(saved["loader"])

    for epoch in range(first, EPOCHS):
        for batch in loader:
            loss = nn.functional.cross_entropy(model(batch["pixels"]), batch["label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            journal.write(done, epoch, batch, loss)
            done += 1
            if done % options.every == 0:
                saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                saved |= {"done": done, "epoch": epoch}
                if hasattr(loader, "state_dict"):
                    saved["loader"] = loader.state_dict()
                save_atomically(saved, checkpoint, keep=1)


if __name__ == "__main__":
    train(parser_of_program(__doc__ or "").parse_args())
