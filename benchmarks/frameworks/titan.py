"""A training with torchtitan's own `CheckpointManager`, in the loop of its `Trainer`.

Its `Trainer` needs an accelerator, so this program has the loop itself, with torchtitan's parts:
checkpointer, optimizer and scheduler containers, and a loader as from its `build_dataloader_fn`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.frameworks.journal import Journal
from benchmarks.frameworks.loop import end_of_rank, parser_of_program
from benchmarks.frameworks.subject import (
    BATCH_SIZE,
    EPOCHS,
    LENGTH,
    Digits,
    build_loader_of_rank,
    build_model,
    set_epoch_of,
)

# Importing torchtitan imports its mixture-of-experts kernels, which need triton, which needs an
# accelerator. This program does not use the kernels, but this stand-in must exist before the
# imports below.
_kernels = ModuleType("torchtitan.models.moe.kernels")
vars(_kernels)["generate_permute_indices"] = None
sys.modules[_kernels.__name__] = _kernels

from torchtitan.components.checkpoint import CheckpointManager  # noqa: E402  # needs it
from torchtitan.components.dataloader import ParallelAwareDataloader  # noqa: E402  # needs it
from torchtitan.components.lr_scheduler import LRSchedulersContainer  # noqa: E402  # needs it
from torchtitan.components.optimizer import OptimizersContainer  # noqa: E402  # needs it
from torchtitan.config import Checkpoint  # noqa: E402  # needs it


@dataclass
class TrainState:
    """The step that torchtitan's ``Trainer`` saves, and the epoch, which some loaders need."""

    step: int = 0
    epoch: int = 0

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.epoch = state["step"], state["epoch"]


def build_dataloader(kind: str, dp_world_size: int, dp_rank: int) -> Any:
    """A loader as from ``build_dataloader_fn`` in a ``TrainSpec``."""
    loader: Any = build_loader_of_rank(kind, dp_rank, dp_world_size)
    if kind == "dataporter":
        from dataporter.integrations.torchtitan import EndlessLoader

        return EndlessLoader(loader)
    if kind == "torchdata":
        return ParallelAwareDataloader(
            Digits(),
            dp_rank,
            dp_world_size,
            batch_size=BATCH_SIZE,
            sampler=loader.sampler,
            generator=loader.generator,
        )
    return loader


def batches_of(loader: Any, state: TrainState) -> Iterator[Any]:
    """Endless batches, as in ``Trainer.batch_generator``; begins epochs if the loader does not."""
    if hasattr(loader, "loader"):
        for batch in loader:
            state.epoch = loader.loader.epoch
            yield batch
    while True:
        set_epoch_of(loader, state.epoch)
        yield from loader
        state.epoch += 1


def train(options: argparse.Namespace) -> None:
    """Train for a number of steps, from the last checkpoint if there is one."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    journal = Journal(options.home, options.attempt, rank, options.kill_at)
    model: nn.Module = build_model()
    if world_size > 1:
        model = DistributedDataParallel(model)
    optimizers = OptimizersContainer([model], torch.optim.AdamW, {"lr": 1e-3})
    schedulers = LRSchedulersContainer(optimizers, lambda step: 1 / (1 + step / 10))
    loader = build_dataloader(options.loader, world_size, rank)
    state = TrainState()
    checkpointer = CheckpointManager(
        dataloader=loader,
        model_parts=[model],
        optimizers=optimizers,
        lr_schedulers=schedulers,
        states={"train_state": state},
        checkpoint_config=Checkpoint(
            enable=True,
            interval=options.every,
            last_save_model_only=False,
            async_mode=options.async_mode,
        ),
        sd_adapter=None,
        base_folder=str(options.home),
    )
    checkpointer.load(options.load_step)
    steps = options.steps or EPOCHS * -(-LENGTH // (BATCH_SIZE * world_size))
    batches = batches_of(loader, state)
    while state.step < steps:
        batch = next(batches)
        optimizers.zero_grad()
        loss = nn.functional.cross_entropy(model(batch["pixels"]), batch["label"])
        loss.backward()
        checkpointer.maybe_wait_for_staging()
        optimizers.step()
        schedulers.step()
        journal.write(state.step, state.epoch, batch, loss.detach())
        state.step += 1
        checkpointer.save(state.step, last_step=state.step == steps)
    checkpointer.close()
    end_of_rank()


if __name__ == "__main__":
    parser = parser_of_program(__doc__ or "")
    parser.add_argument("--async-mode", default="disabled")
    parser.add_argument("--load-step", type=int, default=-1, help="by default the last")
    parser.add_argument("--steps", type=int, help="by default those of all epochs")
    train(parser.parse_args())
