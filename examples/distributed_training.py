"""Train on the handwritten digits with several processes; kill them, resume with fewer or more.

torchrun --nproc-per-node=4 examples/distributed_training.py [checkpoint.pt]
torchrun --nproc-per-node=2 examples/distributed_training.py [checkpoint.pt]
"""

import os
import signal
import sys
import time

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

from dataporter import (
    CheckpointNotFoundError,
    PreemptionGuard,
    create_resumable_dataloader,
    load_latest,
    save_atomically,
)

num_epochs = 3
global_batch_size = 48  # with 1, 2, 3, 4, 6 or 8 processes: the training is the same
path = sys.argv[1] if len(sys.argv) > 1 else "checkpoint.pt"

device = torch.device("cpu")
if torch.cuda.is_available():
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()
if global_batch_size % world_size:
    sys.exit(f"{world_size} processes cannot divide batches of {global_batch_size} evenly")

torch.manual_seed(0)
digits = load_digits()
pixels = torch.tensor(digits.data / 16, dtype=torch.float32)
dataset = TensorDataset(pixels, torch.tensor(digits.target), torch.arange(len(pixels)))
model = DistributedDataParallel(
    nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).to(device)
)
optimizer = torch.optim.Adam(model.parameters())

# Takes its rank from the process group, and its seed from rank 0.
dataloader = create_resumable_dataloader(
    dataset, batch_size=global_batch_size // world_size, shuffle=True
)
seen: list[int] = []  # the samples of this epoch, over all ranks and all runs
repeated = 0


def report(text: str) -> None:
    """Print on rank 0 only."""
    if rank == 0:
        print(text, flush=True)


def save_checkpoint() -> None:
    """Save one file for all ranks, complete at any moment."""
    if rank == 0:
        checkpoint = {
            "model": model.module.state_dict(),
            "optimizer": optimizer.state_dict(),
            "dataloader": dataloader.state_dict(),  # the same on every rank
            "seen": seen,
            "repeated": repeated,
        }
        save_atomically(checkpoint, path, keep=1)


def count(samples: torch.Tensor) -> None:
    """Record which samples all ranks have just trained on."""
    global repeated
    padding = torch.from_numpy(dataloader.padding(dataloader.step - 1))
    per_rank = [torch.empty_like(samples) for _ in range(world_size)]
    dist.all_gather(per_rank, samples.masked_fill(padding, -1))
    together = torch.cat(per_rank).tolist()
    repeated += together.count(-1)
    seen.extend(sample for sample in together if sample >= 0)


try:
    checkpoint = load_latest(path, map_location=device)
except CheckpointNotFoundError:
    report(f"Starting with {world_size} processes. Kill them, or press Ctrl-C, at any time.")
else:
    model.module.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    dataloader.load_state_dict(checkpoint["dataloader"])
    seen, repeated = checkpoint["seen"], checkpoint["repeated"]
    report(
        f"Resuming from {path} with {world_size} processes: epoch {dataloader.epoch}, step "
        f"{dataloader.step}, {len(seen)} of {len(dataset)} samples seen."
    )

with PreemptionGuard(signals=[signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]) as guard:
    for epoch in dataloader.epochs(num_epochs):
        for images, labels, samples in dataloader:
            loss = nn.functional.cross_entropy(model(images.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            count(samples)
            report(f"epoch {epoch}, step {dataloader.step - 1}: loss {loss:.4f}")
            if guard.should_stop():
                save_checkpoint()
                report(f"Stopped by {guard.received.name}. Start again with any number of ranks.")
                dist.destroy_process_group()
                sys.exit()
            if dataloader.step % 5 == 0:
                save_checkpoint()
            time.sleep(0.02)  # training is fast; this leaves time to kill it
        once = sorted(seen) == list(range(len(dataset)))
        report(
            f"epoch {epoch}: {len(seen)} samples, {'each exactly once' if once else 'NOT EXACT'}, "
            f"and {repeated} repeated as padding"
        )
        if not once:
            sys.exit(1)
        seen, repeated = [], 0

if rank == 0 and os.path.exists(path):
    os.remove(path)
report(f"Finished {num_epochs} epochs. Removed {path}, so the next run starts from scratch.")
dist.destroy_process_group()
