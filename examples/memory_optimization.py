"""Measure the memory that narrower dtypes and shared objects save, on local images and text.

python examples/memory_optimization.py

The images are scikit-learn's digits and photographs. The text is the source of Python's standard
library, split into words.
"""

import re
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from sklearn.datasets import load_digits, load_sample_images
from torch import nn
from torch.utils.data import Dataset

from dataporter import (
    DevicePrefetcher,
    KeyBasedDtypeConverter,
    ResumableDataLoader,
    SharedSequence,
    memory_report,
    suggest_conversions,
)

LENGTH = 128  # tokens
TILE = 64  # pixels
RECORDS = 500_000


def photograph_tiles() -> torch.Tensor:
    """Tiles of two photographs, as torchvision's ToTensor makes them: float32, 0 to 1."""
    tiles = []
    for photograph in load_sample_images().images:
        pixels = torch.tensor(photograph).permute(2, 0, 1)
        grid = pixels.unfold(1, TILE, TILE).unfold(2, TILE, TILE)
        tiles.append(grid.permute(1, 2, 0, 3, 4).reshape(-1, 3, TILE, TILE))
    return torch.cat(tiles).float().div(255)


def tokenized_sources() -> tuple[torch.Tensor, torch.Tensor, int]:
    """Token ids and attention masks of lines of source code, and the size of the vocabulary."""
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:60]
    vocabulary: dict[str, int] = {"<pad>": 0}
    rows = []
    for source in sources:
        words = re.findall(r"\w+|[^\w\s]", source.read_text(encoding="utf-8", errors="replace"))
        ids = [vocabulary.setdefault(word, len(vocabulary)) for word in words]
        # Pieces of several lengths, as in sentences.
        start = 0
        while start < len(ids):
            length = 20 + (start * 7) % (LENGTH - 20)
            rows.append(ids[start : start + length])
            start += length
    tokens = torch.zeros(len(rows), LENGTH, dtype=torch.int64)
    mask = torch.zeros_like(tokens)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = torch.tensor(row)
        mask[number, : len(row)] = 1
    return tokens, mask, len(vocabulary)


class Samples(Dataset[dict[str, torch.Tensor]]):
    """A tile of a photograph, a digit with its label, and a piece of text."""

    def __init__(self) -> None:
        digits = load_digits()
        self.tiles = photograph_tiles()
        self.digits = torch.tensor(digits.images / 16, dtype=torch.float32)
        self.labels = torch.tensor(digits.target)
        self.tokens, self.mask, self.words = tokenized_sources()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        text = index % len(self.tokens)
        return {
            "image": self.tiles[index % len(self.tiles)],
            "digit": self.digits[index],
            "labels": self.labels[index],
            "input_ids": self.tokens[text],
            "attention_mask": self.mask[text],
        }


def saved(before: int, after: int) -> str:
    """Two sizes, side by side."""
    return f"{before:>10,} B → {after:>9,} B   {1 - after / before:6.1%} saved"


def losses(batches: DevicePrefetcher[dict[str, torch.Tensor]]) -> list[float]:
    """The losses of a small network that uses all of a batch."""
    torch.manual_seed(0)
    embedding, head = nn.Embedding(50_000, 8), nn.Linear(64 + 8 + 3, 10)
    parameters = [*embedding.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    found = []
    for batch in batches:
        mask = batch["attention_mask"].unsqueeze(-1)
        words = (embedding(batch["input_ids"]) * mask).sum(1) / mask.sum(1)
        colours = batch["image"].mean((2, 3))
        features = torch.cat([batch["digit"].flatten(1), words, colours], 1)
        loss = nn.functional.cross_entropy(head(features), batch["labels"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


class Records(Dataset[int]):
    """Reads only the label of each record."""

    def __init__(self, records: Sequence[dict[str, Any]]) -> None:
        self.records = records

    def __len__(self) -> int:
        return RECORDS

    def __getitem__(self, index: int) -> int:
        return int(self.records[index]["label"])


def growth_over_an_epoch(records: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """Bytes of this process and two workers: at the first batch, and at the last."""
    loader = ResumableDataLoader(
        Records(records),
        1000,
        shuffle=True,
        seed=1,
        strategy="simple",
        num_workers=2,
        multiprocessing_context="fork",
    )
    batches = iter(loader)
    next(batches)
    begin = family_memory()
    for _ in range(len(loader) - 2):
        next(batches)
    return begin, family_memory()


def family_memory() -> int:
    """The proportional set sizes of this process and its workers: shared pages count once.

    On systems without these, the sizes count only the memory that no other process shares.
    """
    process = psutil.Process()
    sizes = [each.memory_full_info() for each in (process, *process.children(recursive=True))]
    return sum(getattr(size, "pss", size.uss) for size in sizes)


def main() -> None:
    """Measure five things."""
    dataset = Samples()

    print("1. The narrowest dtypes for the data\n")
    print(suggest_conversions(dataset, maximum={"input_ids": dataset.words - 1}))

    print("\n2. Bytes saved in a batch of 64\n")
    converter = KeyBasedDtypeConverter(
        {"image": "float16", "labels": "int32", "attention_mask": "uint8", "input_ids": "int32"}
    )
    report = memory_report(ResumableDataLoader(dataset, 64, num_workers=2, converter=converter))
    names = {
        "image": "images",
        "labels": "labels",
        "attention_mask": "attention masks",
        "input_ids": "token ids",
    }
    for leaf in report.leaves:
        if leaf.path in names:
            kinds = f"{leaf.dtype} → {leaf.converted}"
            print(f"{names[leaf.path]:16} {kinds:18} {saved(leaf.before, leaf.after)}")

    print("\n3. Scaled and packed, and widened again for the model\n")
    rules = {
        "image": "uint8:scale",
        "digit": "float16",
        "labels": "uint8",
        "attention_mask": "bits",
        "input_ids": "int32",
    }
    narrow = KeyBasedDtypeConverter(rules, rtol=0)
    for leaf in memory_report(ResumableDataLoader(dataset, 64, converter=narrow)).leaves:
        kinds = f"{leaf.dtype} → {rules[leaf.path]}"
        print(f"{leaf.path:16} {kinds:22} {saved(leaf.before, leaf.after)}")
    found = []
    for converter_or_none in (None, narrow):
        loader = ResumableDataLoader(
            dataset, 64, shuffle=True, seed=1, num_workers=2, converter=converter_or_none
        )
        found.append(losses(DevicePrefetcher(loader, "cpu", widen=converter_or_none)))
    same = found[0] == found[1]
    print(f"\nThe {len(found[0])} training losses are the same, bit for bit: {same}")

    print(f"\n4. {RECORDS:,} records, read by two workers for an epoch\n")
    for name, hold in (("a list", list), ("a SharedSequence", SharedSequence)):
        records = hold(
            {"path": f"images/{number:08}.jpg", "label": number % 10, "width": 640, "height": 480}
            for number in range(RECORDS)
        )
        begin, end = growth_over_an_epoch(records)
        print(
            f"{name:16}: {begin / 1e6:5.0f} MB at the first batch, {end / 1e6:5.0f} MB at the end"
        )
        del records

    print("\n5. The memory of a loader\n")
    print(report)
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
