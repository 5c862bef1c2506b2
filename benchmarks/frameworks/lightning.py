"""A training by Lightning's Trainer, with its own checkpoints and ``ckpt_path="last"``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.frameworks.journal import Journal
from benchmarks.frameworks.loop import end_of_rank, parser_of_program
from benchmarks.frameworks.subject import (
    BATCH_SIZE,
    EPOCHS,
    SEED,
    Digits,
    build_loader,
    build_model,
)

__all__ = ["DigitStream", "Learner", "train"]


class DigitStream(IterableDataset[dict[str, Any]]):
    """The digits in sequence, with a state and without a length."""

    def __init__(self) -> None:
        self.digits, self.position = Digits(), 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while self.position < len(self.digits):
            self.position += 1
            yield self.digits[self.position - 1]
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        """The position."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume from a position."""
        self.position = state["position"]


class Learner(LightningModule):
    """Learns the digits, and records its batches."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__()
        self.model, self.options = build_model(), options
        self.journal: Journal | None = None

    def setup(self, stage: str) -> None:
        """Open this rank's journal."""
        options, rank = self.options, self.trainer.global_rank
        self.journal = Journal(options.home, options.attempt, rank, options.kill_at)

    def train_dataloader(self) -> Any:
        """One or two loaders, as the options say."""
        options = self.options
        loader = stream_loader if options.stream else build_loader
        arguments: dict[str, Any] = {"num_workers": options.workers}
        longest = loader(options.loader, **arguments)
        if options.mode is None:
            return longest
        shortest = build_loader(options.loader, batch_size=25, **arguments)
        return CombinedLoader([longest, shortest], options.mode)

    def training_step(self, batch: Any, batch_index: int) -> Any:
        """One step; joins the batches of several loaders."""
        assert self.journal is not None
        if isinstance(batch, list):
            parts = [part for part in batch if part is not None]
            batch = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        loss = nn.functional.cross_entropy(self.model(batch["pixels"]), batch["label"])
        step = self.trainer.fit_loop.total_batch_idx
        self.journal.write(step, self.trainer.current_epoch, batch, loss)
        return loss

    def validation_step(self, batch: Any, batch_index: int) -> None:
        """The loss on a batch of the validation loader."""
        loss = nn.functional.cross_entropy(self.model(batch["pixels"]), batch["label"])
        self.log("validation loss", loss)

    def configure_optimizers(self) -> Any:
        """Adam, with a schedule over all steps if the options ask for one."""
        optimizer = torch.optim.Adam(self.parameters())
        if not self.options.estimated:
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def stream_loader(kind: str, **arguments: Any) -> DataLoader[Any]:
    """A loader of a stream without a length."""
    if kind == "dataporter":
        from dataporter import ResumableDataLoader

        return ResumableDataLoader(DigitStream(), BATCH_SIZE, seed=SEED, **arguments)
    if kind == "torchdata":
        from torchdata.stateful_dataloader import StatefulDataLoader

        return StatefulDataLoader(DigitStream(), BATCH_SIZE, **arguments)
    return DataLoader(DigitStream(), BATCH_SIZE, **arguments)


def train(options: argparse.Namespace) -> None:
    """Train to the end, from the last checkpoint if there is one."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    saved = {
        "steps": {"every_n_train_steps": options.every},
        "epoch": {"save_on_train_epoch_end": True},
        "validation": {"save_on_train_epoch_end": False},
    }[options.save]
    trainer = Trainer(
        accelerator="cpu",
        devices=options.devices,
        strategy="ddp" if options.devices > 1 else "auto",
        max_epochs=EPOCHS if options.max_steps is None else None,
        max_steps=-1 if options.max_steps is None else options.max_steps,
        accumulate_grad_batches=options.accumulate,
        val_check_interval=options.val_every,
        callbacks=[ModelCheckpoint(options.home / "checkpoints", save_last=True, **saved)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=options.home,
    )
    validation = build_loader(options.loader, shuffle=False) if options.val_every else None
    trainer.fit(
        Learner(options),
        val_dataloaders=validation,
        ckpt_path="last" if options.attempt else None,
    )
    end_of_rank()


def parser() -> argparse.ArgumentParser:
    """The options of all programs, and those for Lightning."""
    parser = parser_of_program(__doc__ or "")
    parser.add_argument("--save", choices=["steps", "epoch", "validation"], default="steps")
    parser.add_argument("--estimated", action="store_true", help="estimated_stepping_batches")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--val-every", type=int)
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--mode", choices=["min_size", "max_size", "max_size_cycle"])
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--devices", type=int, default=1)
    return parser


if __name__ == "__main__":
    train(parser().parse_args())
