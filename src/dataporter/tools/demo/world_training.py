"""One rank of the demo's distributed training, run in a separate process: trains, logs, resumes.

Started again in a directory that holds a checkpoint, in a world of any size, it resumes from it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dataporter.checkpoints.atomic import load_latest, save_atomically
from dataporter.loader.create import create_resumable_dataloader
from dataporter.tools.demo.steps import Step, write_step
from dataporter.tools.demo.training import CHECKPOINT, SEED, AugmentedDigits, build_model

__all__ = ["CHECKPOINT_EVERY"]

# Steps between checkpoints, within an epoch.
CHECKPOINT_EVERY = 5
_TIMEOUT = timedelta(seconds=60)


def train(
    directory: Path,
    data: Path,
    log_path: Path,
    rank: int,
    world_size: int,
    global_batch_size: int,
    epochs: int,
) -> None:
    """Train to the last epoch, from the checkpoint in ``directory`` if there is one."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    started_by = os.getppid()
    # A new file for each run of the chain: the last one still lists the ranks of a dead world.
    rendezvous = f"file://{log_path.parent}/rendezvous"
    dist.init_process_group("gloo", rendezvous, _TIMEOUT, world_size, rank)

    loader = create_resumable_dataloader(
        AugmentedDigits(data), global_batch_size // world_size, shuffle=True, seed=SEED
    )
    model = DistributedDataParallel(build_model())
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    trained_steps = 0

    checkpoint_path = directory / CHECKPOINT
    if checkpoint_path.exists():
        checkpoint = load_latest(checkpoint_path)
        model.module.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        loader.load_state_dict(checkpoint["loader"])
        trained_steps = checkpoint["trained_steps"]

    with log_path.open("a") as log:
        while loader.epoch < epochs:
            for images, labels, samples in loader:
                loss = nn.functional.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # torch left it so
                optimizer.step()
                trained_steps += 1
                # Repeats added as padding are trained on, but not counted.
                counts = ~torch.from_numpy(loader.padding(loader.step - 1))
                done = Step(
                    epoch=loader.epoch,
                    step=loader.step - 1,
                    samples=tuple(samples[counts].tolist()),
                    digest=" ".join(map(_digest, images[counts])),
                    loss=float(loss.item()).hex(),
                )
                write_step(log, done)
                if rank == 0 and loader.step % CHECKPOINT_EVERY == 0:
                    checkpoint = {
                        "model": model.module.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "loader": loader.state_dict(),
                        "trained_steps": trained_steps,
                    }
                    save_atomically(checkpoint, checkpoint_path)
                if os.getppid() != started_by:
                    raise SystemExit("the process that started this training run is gone")
    dist.barrier()


def _digest(image: Tensor) -> str:
    return hashlib.sha256(image.numpy().tobytes()).hexdigest()[:16]


def main() -> None:
    """Read the arguments that the demo passes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="the checkpoint's directory")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    for number in ("rank", "world-size", "global-batch-size", "epochs"):
        parser.add_argument(f"--{number}", type=int, required=True)
    given = parser.parse_args()
    train(
        given.directory,
        given.data,
        given.log,
        given.rank,
        given.world_size,
        given.global_batch_size,
        given.epochs,
    )
    # Skip Python's finalisation, in which a gloo thread may wait for Python's lock to release the
    # model's last reduction, so that torch aborts the process. Destroying the group does not help
    # while a DDP model holds it.
    os._exit(0)


if __name__ == "__main__":
    main()
