"""How fast are batches of a Hugging Face dataset, and the first one after a resume?"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from benchmarks.command import run
from benchmarks.loaders import OURS, our_loader, torch_loader
from benchmarks.rounds import Rounds, play
from benchmarks.side_by_side import race
from benchmarks.tables import Goal, Table
from benchmarks.timing import samples_per_second, seconds_once
from dataporter import ResumableDataLoader, UnifiedHFDatasetWrapper
from dataporter.convert import leaves_of

BATCH_SIZE = 64
ROWS, LENGTH = 20_000, 512
ROWS_TO_RESUME = 1_000_000
WRAPPED = f"{OURS}, UnifiedHFDatasetWrapper"
TORCH_FORMAT = 'with_format("torch"), torch DataLoader'
BARE = "bare gather from memory"
BARE_WIDE = "bare gather from memory, as int64"
TRAINER = "transformers' Trainer: batches skipped in the sampler"

INLINE_GOAL, BARE_GOAL, WORKERS_GOAL, BYTES_GOAL, RESUME_GOAL = 7.0, 0.5, 10.0, 0.3, 0.02


def measure(quick: bool) -> Table:
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        tokens = saved(token_rows(), Path(folder, "tokens"))
        inline = _inline(tokens, quick)
        workers = _with_workers(tokens, quick)
        sizes = {name: _bytes(next(iter(loader))) for name, loader in _loaders(tokens).items()}
        resumed = _resumed(saved(_labels(), Path(folder, "labels")), rounds=3 if quick else 15)
    rows = [
        *_speeds("no workers", inline),
        *_speeds("2 workers", workers),
        *(
            (
                f"a batch of {BATCH_SIZE}, {name}",
                f"{size:,} B",
                "",
                f"{size / sizes[TORCH_FORMAT]:.2f}",
            )
            for name, size in sizes.items()
        ),
        *(
            (
                f"resume, {name}",
                f"{resumed.median(name) * 1e3:.2f} ms",
                _range(resumed, name, 1e3),
                "",
            )
            for name in resumed.figures
        ),
    ]
    return Table(
        f"Hugging Face datasets: {ROWS:,} rows of {LENGTH} token ids (int32), types and mask "
        f"(int8) and a label, saved to disk and memory-mapped, shuffled, batch {BATCH_SIZE}",
        ("", "measured", "range", "times torch format"),
        tuple(rows),
        (
            _at_least(INLINE_GOAL, "times the torch format, no workers", inline, TORCH_FORMAT),
            _at_least(BARE_GOAL, "of a bare gather from memory", inline, BARE),
            _at_least(WORKERS_GOAL, "times the torch format, 2 workers", workers, TORCH_FORMAT),
            Goal(
                f"at most {BYTES_GOAL:g} of the torch format's bytes",
                f"{sizes[WRAPPED] / sizes[TORCH_FORMAT]:.2f}",
                sizes[WRAPPED] <= BYTES_GOAL * sizes[TORCH_FORMAT],
            ),
            Goal(
                f"below {RESUME_GOAL * 1e3:g} ms to the first batch, 90% through "
                f"{ROWS_TO_RESUME:,} rows",
                f"{resumed.median(WRAPPED) * 1e3:.1f} ms",
                resumed.median(WRAPPED) < RESUME_GOAL,
            ),
        ),
        (
            "The torch format returns int64 for all columns, the wrapper the stored dtypes. Bare "
            "gather: `index_select` on in-memory tensors of the stored dtypes, with slices of a "
            "precomputed permutation; and on the same tensors as int64, which the torch format "
            "delivers. Without workers the loaders take turns of 20 batches. With workers, which "
            "persist, each loader runs alone for 1 s over several epochs; the first 20 batches are "
            "not timed.",
            f"Resume: {ROWS_TO_RESUME:,} rows of 16 ids and a label, no workers, the loader built "
            "before the clock starts. The Trainer calls Accelerate's `skip_first_batches`, which "
            "iterates over the batch sampler, as done here, behind a sampler that draws the whole "
            "permutation; no data is read for skipped batches.",
        ),
    )


def _loaders(dataset: Dataset, **arguments: Any) -> dict[str, Iterable[Any]]:
    return {
        WRAPPED: our_loader(UnifiedHFDatasetWrapper(dataset), BATCH_SIZE, **arguments),
        TORCH_FORMAT: torch_loader(dataset.with_format("torch"), BATCH_SIZE, **arguments),
    }


def _inline(dataset: Dataset, quick: bool) -> Rounds:
    wrapper: Any = UnifiedHFDatasetWrapper(dataset)
    columns = wrapper.__getbatch__(np.arange(len(dataset)))
    loaders = {
        BARE: BareGather(list(columns.values())),
        BARE_WIDE: BareGather([column.long() for column in columns.values()]),
        **_loaders(dataset),
    }
    return race(loaders, batch_size=BATCH_SIZE, quick=quick)


def _with_workers(dataset: Dataset, quick: bool) -> Rounds:
    contestants: dict[str, Callable[[], float]] = {
        name: partial(
            samples_per_second,
            chain.from_iterable(repeat(loader)),
            batch_size=BATCH_SIZE,
            at_most=0.3 if quick else 1.0,
            warm_up=20,
        )
        for name, loader in _loaders(dataset, num_workers=2, persistent_workers=True).items()
    }
    return play(contestants, 3 if quick else 7)


class BareGather:
    """Only the gathers, of columns that are in memory."""

    def __init__(self, columns: list[torch.Tensor]) -> None:
        self._columns = columns
        self._permutation = torch.randperm(len(columns[0]))

    def __iter__(self) -> Iterator[list[torch.Tensor]]:
        for start in range(0, len(self._permutation) - BATCH_SIZE + 1, BATCH_SIZE):
            rows = self._permutation[start : start + BATCH_SIZE]
            yield [column.index_select(0, rows) for column in self._columns]


class _SkippingSampler(BatchSampler):
    """What Accelerate's ``skip_first_batches`` uses in place of a batch sampler."""

    def __init__(self, sampler: BatchSampler, skipped: int) -> None:
        self._sampler, self._skipped = sampler, skipped

    def __iter__(self) -> Iterator[list[int]]:
        for number, batch in enumerate(self._sampler):
            if number >= self._skipped:
                yield batch

    def __len__(self) -> int:
        return len(self._sampler) - self._skipped


def _resumed(dataset: Dataset, rounds: int) -> Rounds:
    wrapper = UnifiedHFDatasetWrapper(dataset)
    skipped = len(dataset) // BATCH_SIZE * 9 // 10
    formatted = dataset.with_format("torch")

    def loader() -> ResumableDataLoader[Any]:
        return ResumableDataLoader(wrapper, BATCH_SIZE, shuffle=True, seed=1)

    stopped = loader()
    stopped.seek(step=skipped)
    state = stopped.state_dict()

    def ours() -> float:
        resumed = loader()

        def first() -> object:
            resumed.load_state_dict(state)
            return next(iter(resumed))

        return seconds_once(first)

    def trainer() -> float:
        generator = torch.Generator().manual_seed(1)
        sampler = BatchSampler(RandomSampler(dataset, generator=generator), BATCH_SIZE, False)
        return seconds_once(
            lambda: next(
                iter(DataLoader(formatted, batch_sampler=_SkippingSampler(sampler, skipped)))
            )
        )

    return play({WRAPPED: ours, TRAINER: trainer}, rounds)


def token_rows(count: int = ROWS) -> Dataset:
    rng = np.random.default_rng(0)
    features = Features(
        {
            "input_ids": List(Value("int32")),
            "token_type_ids": List(Value("int8")),
            "attention_mask": List(Value("int8")),
            "label": ClassLabel(num_classes=10),
        }
    )
    shape = (count, LENGTH)
    return Dataset.from_dict(
        {
            "input_ids": rng.integers(0, 30_522, shape, dtype=np.int32),
            "token_type_ids": np.zeros(shape, dtype=np.int8),
            "attention_mask": np.ones(shape, dtype=np.int8),
            "label": rng.integers(0, 10, count),
        },
        features=features,
    )


def _labels() -> Dataset:
    rng = np.random.default_rng(0)
    features = Features({"input_ids": List(Value("int32")), "label": ClassLabel(num_classes=10)})
    return Dataset.from_dict(
        {
            "input_ids": rng.integers(0, 30_522, (ROWS_TO_RESUME, 16), dtype=np.int32),
            "label": rng.integers(0, 10, ROWS_TO_RESUME),
        },
        features=features,
    )


def saved(dataset: Dataset, path: Path) -> Dataset:
    dataset.save_to_disk(path)
    return datasets.load_from_disk(path)


def _bytes(batch: Any) -> int:
    return sum(leaf.nbytes for _, leaf in leaves_of(batch))


def _speeds(how: str, rounds: Rounds) -> list[tuple[str, ...]]:
    return [
        (
            f"{how}, {name}",
            f"{rounds.median(name):,.0f} samples/s",
            _range(rounds, name),
            f"{rounds.ratio(name, TORCH_FORMAT):.1f}",
        )
        for name in rounds.figures
    ]


def _range(rounds: Rounds, name: str, scale: float = 1.0) -> str:
    low, high = rounds.range(name)
    digits = ",.2f" if scale > 1 else ",.0f"
    return f"{low * scale:{digits}} to {high * scale:{digits}}"


def _at_least(wanted: float, what: str, rounds: Rounds, other: str) -> Goal:
    reached = rounds.ratio(WRAPPED, other)
    return Goal(f"at least {wanted:g} {what}", f"{reached:.2f}", reached >= wanted)


if __name__ == "__main__":
    run(measure, __doc__)
