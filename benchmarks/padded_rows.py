"""How fast are padded batches of a Hugging Face dataset whose rows have several lengths?"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from benchmarks.command import run
from benchmarks.huggingface import BareGather
from benchmarks.loaders import OURS
from benchmarks.rounds import Rounds, play
from benchmarks.side_by_side import PROCEDURE, race
from benchmarks.tables import Goal, Table
from benchmarks.timing import samples_per_second
from dataporter import ResumableDataLoader, UnifiedHFDatasetWrapper

BATCH_SIZE = 64
ROWS, LONGEST, MOST_BOXES = 20_000, 512, 20
WRAPPED = f"{OURS}, UnifiedHFDatasetWrapper(pad=...)"
TORCH_FORMAT = 'with_format("torch"), pad_sequence'
NUMPY_FORMAT = 'with_format("numpy"), padded by NumPy'
BARE = "bare gather of rows padded before"

GOAL = 7.0


def measure(quick: bool) -> Table:
    datasets.disable_progress_bars()
    rows: list[tuple[str, ...]] = []
    goals = []
    with tempfile.TemporaryDirectory() as folder:
        for what, made in (("token ids", _tokens()), ("boxes", _boxes())):
            made.save_to_disk(Path(folder, what))
            dataset = datasets.load_from_disk(Path(folder, what))
            _check(dataset)
            for how, rounds in (
                ("no workers", _inline(dataset, quick)),
                ("2 workers", _with_workers(dataset, quick)),
            ):
                rows += rounds.speeds(f"{what}, {how}, ", TORCH_FORMAT)
                reached = min(rounds.ratio(WRAPPED, name) for name in (TORCH_FORMAT, NUMPY_FORMAT))
                goals.append(
                    Goal(
                        f"{what}, {how}: at least {GOAL:g} times either format",
                        f"{reached:.1f}",
                        reached >= GOAL,
                    )
                )
    return Table(
        f"Padded rows: {ROWS:,} rows of 1 to {LONGEST} token ids (int32) and as many labels, or of "
        f"1 to {MOST_BOXES} boxes (lists of 4 float32), memory-mapped, shuffled, batch "
        f"{BATCH_SIZE}",
        ("", "samples/s", "range", "times torch format"),
        tuple(rows),
        tuple(goals),
        (
            "Each batch is padded to its longest row and has a mask. All deliver the same values; "
            'of the torch format the dtype is int64. Without workers: "' + PROCEDURE + '" With '
            "workers, which persist, each loader runs alone for 2 s; the first 20 batches are not "
            "timed. Bare gather: `index_select` on in-memory tensors of rows that were padded to "
            "the longest row of all.",
        ),
    )


def _loaders(dataset: Dataset, **arguments: Any) -> dict[str, Iterable[Any]]:
    columns = dataset.column_names
    wrapper: Any = UnifiedHFDatasetWrapper(dataset, pad=dict.fromkeys(columns, 0))
    plain = {"shuffle": True, "drop_last": True, **arguments}
    return {
        WRAPPED: ResumableDataLoader(wrapper, BATCH_SIZE, **plain),
        TORCH_FORMAT: DataLoader(
            dataset.with_format("torch"), BATCH_SIZE, collate_fn=_padded_by_torch, **plain
        ),
        NUMPY_FORMAT: DataLoader(
            dataset.with_format("numpy"), BATCH_SIZE, collate_fn=_padded_by_numpy, **plain
        ),
    }


def _padded_by_torch(samples: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    batch = {
        name: pad_sequence([sample[name] for sample in samples], batch_first=True)
        for name in samples[0]
    }
    lengths = torch.tensor([len(next(iter(sample.values()))) for sample in samples])
    longest = next(iter(batch.values())).shape[1]
    return {**batch, "mask": (torch.arange(longest) < lengths[:, None]).to(torch.int8)}


def _padded_by_numpy(samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    batch = {}
    for name in samples[0]:
        # A list of lists is an array of arrays in this format.
        rows = [np.array(sample[name].tolist(), np.float32) if sample[name].dtype == object
                else sample[name] for sample in samples]  # fmt: skip
        lengths = [len(row) for row in rows]
        shape = (len(rows), max(lengths), *rows[0].shape[1:])
        padded, mask = np.zeros(shape, rows[0].dtype), np.zeros(shape[:2], np.int8)
        for number, row in enumerate(rows):
            padded[number, : len(row)] = row
            mask[number, : len(row)] = 1
        batch[name] = torch.from_numpy(padded)
    return {**batch, "mask": torch.from_numpy(mask)}


def _check(dataset: Dataset) -> None:
    """Raise unless all pad alike."""
    chosen = range(BATCH_SIZE)
    names = dataset.column_names
    wrapper: Any = UnifiedHFDatasetWrapper(dataset, pad=dict.fromkeys(names, 0))
    ours = wrapper.__getbatch__(np.arange(BATCH_SIZE))
    for collate, kind in ((_padded_by_torch, "torch"), (_padded_by_numpy, "numpy")):
        formatted = dataset.with_format(kind)
        theirs = collate([formatted[index] for index in chosen])
        if not all(torch.equal(ours[name], theirs[name].to(ours[name].dtype)) for name in names):
            raise AssertionError(f"the {kind} format is padded differently")


def _inline(dataset: Dataset, quick: bool) -> Rounds:
    wrapper: Any = UnifiedHFDatasetWrapper(dataset, pad=dict.fromkeys(dataset.column_names, 0))
    padded = list(wrapper.__getbatch__(np.arange(len(dataset))).values())
    return race({BARE: BareGather(padded), **_loaders(dataset)}, batch_size=BATCH_SIZE, quick=quick)


def _with_workers(dataset: Dataset, quick: bool) -> Rounds:
    contestants: dict[str, Callable[[], float]] = {
        name: partial(
            samples_per_second,
            chain.from_iterable(repeat(loader)),
            batch_size=BATCH_SIZE,
            at_most=0.5 if quick else 2.0,
            warm_up=20,
        )
        for name, loader in _loaders(dataset, num_workers=2, persistent_workers=True).items()
    }
    return play(contestants, 3 if quick else 7)


def _tokens() -> Dataset:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, LONGEST + 1, ROWS)
    ids = [rng.integers(0, 30_522, length, dtype=np.int32) for length in lengths]
    features = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32"))})
    return Dataset.from_dict({"input_ids": ids, "labels": ids}, features=features)


def _boxes() -> Dataset:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, MOST_BOXES + 1, ROWS)
    boxes = [rng.random((length, 4), dtype=np.float32).tolist() for length in lengths]
    features = Features({"boxes": List(List(Value("float32"), length=4))})
    return Dataset.from_dict({"boxes": boxes}, features=features)


if __name__ == "__main__":
    run(measure, __doc__)
