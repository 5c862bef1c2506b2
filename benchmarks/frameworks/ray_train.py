"""A training in Ray Train: its trainer and workers, its `report`, and its checkpoints."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from torch import nn

from benchmarks.frameworks.journal import Journal
from benchmarks.frameworks.loop import parser_of_program
from benchmarks.frameworks.subject import (
    EPOCHS,
    build_loader,
    build_loader_of_rank,
    build_model,
    set_epoch_of,
)


def train_loop_per_worker(config: dict[str, Any]) -> None:
    """Restore, train, report with a checkpoint, as in Ray's guide."""
    options = argparse.Namespace(**config)
    torch.set_num_threads(1)
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    model = ray.train.torch.prepare_model(build_model())
    optimizer = torch.optim.Adam(model.parameters())
    loader: Any = loader_for(options.loader, rank, world_size)
    done = first = 0
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            saved = torch.load(Path(folder) / "checkpoint.pt", weights_only=True)
            plain(model).load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            done, first = saved["done"], saved["epoch"]
            if options.loader == "dataporter":
                loader.load_state_dict(saved["loader"])
            elif options.loader == "torchdata":
                state = torch.load(Path(folder) / f"loader-{rank}.pt", weights_only=False)
                loader.load_state_dict(state)
    restarted = options.restarted_by_ray and checkpoint is not None
    journal = Journal(
        options.home,
        options.attempt + restarted,
        rank,
        None if restarted else options.kill_at,
    )

    for epoch in range(first, EPOCHS):
        set_epoch_of(loader, epoch)
        for batch in loader:
            loss = nn.functional.cross_entropy(model(batch["pixels"]), batch["label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            journal.write(done, epoch, batch, loss.detach())
            done += 1
            if done % options.every == 0:
                with tempfile.TemporaryDirectory() as folder:
                    if rank == 0:
                        saved = {
                            "model": plain(model).state_dict(),
                            "optimizer": optimizer.state_dict(),
                            "done": done,
                            "epoch": epoch,
                        }
                        if options.loader == "dataporter":
                            saved["loader"] = loader.state_dict()
                        torch.save(saved, Path(folder) / "checkpoint.pt")
                    if options.loader == "torchdata":
                        torch.save(loader.state_dict(), Path(folder) / f"loader-{rank}.pt")
                    ray.train.report(
                        {"step": done}, checkpoint=ray.train.Checkpoint.from_directory(folder)
                    )
                # These steps are short, and the checkpoints must exist at the kill.
                ray.train.get_all_reported_checkpoints()


def loader_for(kind: str, rank: int, world_size: int) -> Any:
    """Torch's loader is prepared, as in Ray's guide; this shards it, but would drop a state."""
    if kind == "torch":
        return ray.train.torch.prepare_data_loader(build_loader(kind))
    return build_loader_of_rank(kind, rank, world_size)


def plain(model: nn.Module) -> nn.Module:
    """The model without the wrapper that several workers have."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def main(options: argparse.Namespace) -> None:
    """Start Ray on this machine only, train, and remove all of it."""
    # Sends no usage reports, and writes no token into the user's home.
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    # While several trainings run, a worker takes long to start.
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "200"
    # The paths of Ray's sockets must be short, so they are not in the training's home.
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        print(f"Ray's files: {folder}", flush=True)
        ray.init(
            num_cpus=options.ranks,
            include_dashboard=False,
            object_store_memory=80 << 20,
            _temp_dir=folder,
        )
        try:
            trainer = ray.train.torch.TorchTrainer(
                train_loop_per_worker,
                train_loop_config=vars(options),
                scaling_config=ray.train.ScalingConfig(num_workers=options.ranks),
                run_config=ray.train.RunConfig(
                    name="training",
                    storage_path=str(options.home.resolve()),
                    failure_config=ray.train.FailureConfig(
                        max_failures=1 if options.restarted_by_ray else 0
                    ),
                ),
            )
            trainer.fit()
        finally:
            ray.shutdown()


if __name__ == "__main__":
    parser = parser_of_program(__doc__ or "")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--restarted-by-ray", action="store_true")
    main(parser.parse_args())
