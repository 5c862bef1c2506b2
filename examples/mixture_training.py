"""Train a tiny GPT on a mixture of texts; kill it, and resume with other weights and a new source.

python examples/mixture_training.py [checkpoint.pt]
torchrun --nproc-per-node=2 examples/mixture_training.py --weights code=0.4,prose=0.2,headers=0.4
"""

import argparse
import os
import sysconfig
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dataporter import (
    CheckpointNotFoundError,
    Mixture,
    ResumableDataLoader,
    load_latest,
    save_atomically,
)

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("path", nargs="?", default="checkpoint.pt")
parser.add_argument(
    "--weights", default="code=0.7,prose=0.3", help="of which sources, and how much"
)
given = parser.parse_args()

num_epochs, steps_per_epoch = 2, 60
global_batch_size, context, seed = 32, 48, 7

distributed = "RANK" in os.environ  # started by torchrun
if distributed:
    dist.init_process_group("gloo")
rank, world_size = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)


class Texts:
    """Files of text as rows of bytes: sample i has the bytes of row i, and its number."""

    def __init__(self, folder: str, patterns: list[str], size: int) -> None:
        files = (file for pattern in patterns for file in Path(folder).glob(pattern))
        text = b""
        for file in sorted(files):
            if len(text) >= size:
                break
            text += file.read_bytes()
        rows = len(text[:size]) // (context + 1)
        self.rows = np.frombuffer(text, np.uint8, rows * (context + 1)).reshape(rows, -1)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, object]:
        return {"tokens": self.rows[index].astype(np.int64), "id": index}


# Texts that every machine with Python and torch has.
library, packages = sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")
sources = {
    "code": lambda: Texts(library, ["*.py"], 400_000),
    "prose": lambda: Texts(packages, ["*.dist-info/**/LICENSE*", "*.dist-info/METADATA"], 60_000),
    "headers": lambda: Texts(packages, ["torch/include/c10/**/*.h"], 200_000),
}
weights = dict(part.split("=") for part in given.weights.split(","))
weights = {name: float(weight) for name, weight in weights.items()}


class TinyGPT(nn.Module):
    """Predicts each next byte."""

    def __init__(self, width: int = 48, layers: int = 2) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, width)
        self.places = nn.Embedding(context, width)
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 256)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(context))

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1])
        hidden = self.bytes(tokens) + self.places(places)
        return self.head(self.blocks(hidden, self.mask, is_causal=True))


torch.manual_seed(0)
torch.set_num_threads(1)  # so that sums, and with them the losses, are the same in each run
gpt = TinyGPT()
model = DistributedDataParallel(gpt) if distributed else gpt
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

mixture = Mixture(
    {name: sources[name]() for name in weights},
    weights,
    stopping=steps_per_epoch * global_batch_size,
    source_key="source",
)
dataloader = ResumableDataLoader(
    mixture, batch_size=global_batch_size // world_size, shuffle=True, seed=seed
)
seen: list[list[tuple[str, int]]] = []  # of each step of the run, the samples of all ranks


def report(text: str) -> None:
    """Print on rank 0 only."""
    if rank == 0:
        print(text, flush=True)


def over_all_ranks(here: list[tuple[str, int, float]]) -> list[tuple[str, int, float]]:
    """The samples and losses of all ranks."""
    if not distributed:
        return here
    parts: list[list[tuple[str, int, float]]] = [[] for _ in range(world_size)]
    dist.all_gather_object(parts, here)
    return [sample for part in parts for sample in part]


def save_checkpoint() -> None:
    """Save one file for all ranks, complete at any moment."""
    if rank == 0:
        checkpoint = {
            "model": gpt.state_dict(),
            "optimizer": optimizer.state_dict(),
            "dataloader": dataloader.state_dict(),  # the same on every rank
            "seen": seen,
        }
        save_atomically(checkpoint, given.path, keep=1)


def stream_of(name: str, count: int) -> list[int]:
    """The first samples of a source's own order, as a mixture of this source alone delivers it."""
    mixture = Mixture({name: sources[name]()}, stopping=count)
    alone = ResumableDataLoader(
        mixture, batch_size=count, shuffle=True, seed=seed, rank=0, world_size=1
    )
    return [index for _, index in alone.samples_at(0, 0)]


def audit() -> None:
    """Check that each source was consumed as a prefix of its order, step by step."""
    steps: dict[str, list[list[int]]] = defaultdict(list)
    for step in seen:
        for name in {name for name, _ in step}:
            steps[name].append(sorted(index for source, index in step if source == name))
    for name, parts in steps.items():
        expected, begin = stream_of(name, sum(map(len, parts))), 0
        for part in parts:
            if part != sorted(expected[begin : begin + len(part)]):
                raise SystemExit(f"{name}: NOT the next samples of its order after {begin}")
            begin += len(part)
        passes = begin / len(sources[name]())
        print(f"{name}: {begin} samples, {passes:.2f} passes, a prefix of its order")


try:
    checkpoint = load_latest(given.path)
except CheckpointNotFoundError:
    report(f"Starting with {weights}. Kill it at any time; {given.path} is saved every 10 steps.")
else:
    gpt.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    dataloader.load_state_dict(checkpoint["dataloader"])  # a warning says what has changed
    seen = checkpoint["seen"]
    report(
        f"Resuming from {given.path} with {world_size} processes and {weights}: epoch "
        f"{dataloader.epoch}, step {dataloader.step}."
    )

for epoch in dataloader.epochs(num_epochs):
    losses: dict[str, list[float]] = defaultdict(list)
    for batch in dataloader:
        logits = model(batch["tokens"][:, :-1])
        each = nn.functional.cross_entropy(
            logits.transpose(1, 2), batch["tokens"][:, 1:], reduction="none"
        ).mean(1)
        optimizer.zero_grad()
        each.mean().backward()
        optimizer.step()
        done = over_all_ranks(list(zip(batch["source"], batch["id"].tolist(), each.tolist())))
        seen.append([(name, index) for name, index, _ in done])
        for name, _, loss in done:
            losses[name].append(loss)
        loss = sum(loss for _, _, loss in done) / len(done)
        counts = {name: sum(source == name for source, *_ in done) for name in weights}
        report(f"epoch {epoch}, step {dataloader.step - 1}: loss {loss.hex()}, {counts}")
        if dataloader.step % 10 == 0:
            save_checkpoint()
        time.sleep(0.01)  # leaves time to kill it
    report(f"epoch {epoch}: " + ", ".join(f"{n} {np.mean(x):.3f}" for n, x in losses.items()))

if rank == 0:
    audit()
    if os.path.exists(given.path):
        os.remove(given.path)
report(f"Finished {num_epochs} epochs. Removed {given.path}, so the next run starts from scratch.")
if distributed:
    dist.destroy_process_group()
