"""One rank of a training, as people write it: steps that all ranks join in, checkpoints by rank 0.

Run as a program by torchrun, it trains until it is killed:

    torchrun --nproc-per-node=3 rank_process.py DIRECTORY
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from subjects import Augmented, digest, ids

from dataporter import ResumableDataLoader

# Whatever 3 ranks leave of it, 2 ranks share without a repeat.
LENGTH, BATCH_SIZE = 60, 2


def train(directory: Path, *, kill_rank: int | None = None, pause: float = 0.0) -> None:
    """An epoch, from the checkpoint if there is one; ``kill_rank`` is killed at its fifth step."""
    rank = dist.get_rank()
    loader = ResumableDataLoader(Augmented(LENGTH), BATCH_SIZE, shuffle=True, num_workers=1)
    checkpoint = directory / "checkpoint.pt"
    if checkpoint.exists():
        loader.load_state_dict(torch.load(checkpoint, weights_only=True)["loader"])
    log = directory / f"{dist.get_world_size()}-{rank}-{os.getpid()}.jsonl"
    with log.open("w", buffering=1) as lines:
        for batch in loader:
            step = loader.step - 1
            if step == 0:
                workers = [child.pid for child in psutil.Process().children()]
                (directory / f"{os.getpid()}.workers").write_text(json.dumps(workers))
            samples = [
                digest({name: values[place] for name, values in batch.items()})
                for place in range(len(ids(batch)))
            ]
            print(json.dumps([step, *zip(ids(batch), samples)]), file=lines)
            if rank == kill_rank and step == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            dist.all_reduce(torch.ones(1))  # the gradients
            if rank == 0:
                written = checkpoint.with_suffix(".new")
                torch.save({"loader": loader.state_dict()}, written)
                os.replace(written, checkpoint)
            time.sleep(pause)


def main() -> None:
    dist.init_process_group("gloo")
    train(Path(sys.argv[1]), pause=0.1)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
