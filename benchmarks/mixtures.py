"""How fast is a mixture of three sources, and what does its order cost in time and memory?"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import chain, repeat
from statistics import median
from typing import Any

import datasets
import grain
import numpy as np
import torch
import torchdata.nodes as nodes
from datasets import Dataset, Features, List, Value
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from benchmarks.command import run
from benchmarks.datasets import FEATURES, NumpyPairs, pairs
from benchmarks.loaders import BATCH_SIZE, OURS
from benchmarks.rounds import Rounds, play
from benchmarks.side_by_side import PROCEDURE, race
from benchmarks.tables import Goal, Table
from benchmarks.timing import (
    peak_allocated,
    samples_per_second,
    seconds_once,
    seconds_per_call,
)
from dataporter import Mixture, ResumableDataLoader, UnifiedHFDatasetWrapper
from dataporter.orders.mixture.order import MixtureOrder
from dataporter.orders.shuffled import ShuffledOrder

LENGTHS = {"web": 140_000, "code": 50_000, "books": 10_000}
WEIGHTS = {"web": 0.7, "code": 0.25, "books": 0.05}
SAMPLES = sum(LENGTHS.values())

MIXTURE = f"{OURS}, Mixture of TensorDatasets"
TORCH = "torch DataLoader, ConcatDataset, WeightedRandomSampler"
GRAIN = "Grain MapDataset.mix"
NODES = "torchdata MultiNodeWeightedSampler"
ARROW = f"{OURS}, Mixture of Arrow datasets"
INTERLEAVED = 'interleave_datasets, with_format("torch"), torch DataLoader'
TIMES = 5.0

FAR = 10**12
AT_ONCE = 8192
GOAL_NANOSECONDS = 100.0
GOAL_JUMP = 0.002
GOAL_BYTES = 2_000_000
# Of a state: in all, and more for each source.
GOAL_STATE, GOAL_OF_SOURCE = 1024, 40


def measure(quick: bool) -> Table:
    datasets.disable_progress_bars()
    rows: list[tuple[str, ...]] = []
    goals = []
    inline = race(_inline(), batch_size=BATCH_SIZE, quick=quick)
    for how, rounds in (("no workers", inline), ("2 workers", _with_workers(quick))):
        rows += rounds.speeds(f"{how}: ", TORCH)
        for ours, theirs in ((MIXTURE, TORCH), (ARROW, INTERLEAVED)):
            times = rounds.ratio(ours, theirs)
            wanted = f"{how}: {ours}, at least {TIMES:g} times {theirs}"
            if how == "no workers":
                goals.append(Goal(wanted, f"{times:.1f}", times >= TIMES))
    return Table(
        f"Mixtures: {len(LENGTHS)} sources of {FEATURES} float32 and a label, "
        f"{SAMPLES:,} samples, shares 70 %, 25 % and 5 %, batch {BATCH_SIZE}",
        ("", "samples/s", "range", "times torch"),
        tuple(rows),
        (*goals, *_of_the_order(quick), *_of_the_state()),
        (
            f'Without workers: "{PROCEDURE}" With workers, which persist, each loader runs alone; '
            "the first 20 batches are not timed. torch draws with replacement, and the others "
            "each source in a shuffled order. torchdata's node reads in the training's process in "
            "both.",
        ),
    )


def _inline() -> dict[str, Iterable[Any]]:
    return {**_of_tensors(), GRAIN: _grain(), NODES: _nodes(), **_of_arrow()}


def _with_workers(quick: bool) -> Rounds:
    options = {"num_workers": 2, "persistent_workers": True}
    loaders = {**_of_tensors(**options), **_of_arrow(**options)}
    if not quick:  # they take 10 s to start
        loaders[GRAIN] = _grain(num_workers=2)
    contestants: dict[str, Callable[[], float]] = {
        name: partial(
            samples_per_second,
            chain.from_iterable(repeat(loader)),
            batch_size=BATCH_SIZE,
            at_most=0.5 if quick else 2.0,
            warm_up=20,
        )
        for name, loader in loaders.items()
    }
    return play(contestants, 3 if quick else 7)


def _of_tensors(**options: Any) -> dict[str, Iterable[Any]]:
    sources = {name: pairs(length) for name, length in LENGTHS.items()}
    mixture = Mixture(sources, WEIGHTS, stopping=SAMPLES)
    each = [torch.full((LENGTHS[name],), WEIGHTS[name] / LENGTHS[name]) for name in sources]
    sampler = WeightedRandomSampler(torch.cat(each), SAMPLES)  # type: ignore[arg-type]  # a tensor
    joined: ConcatDataset[Any] = ConcatDataset(sources.values())
    return {
        MIXTURE: ResumableDataLoader(mixture, BATCH_SIZE, shuffle=True, **options),
        TORCH: DataLoader(joined, BATCH_SIZE, sampler=sampler, **options),
    }


def _of_arrow(**options: Any) -> dict[str, Iterable[Any]]:
    tables = {name: _arrow(pairs(length)) for name, length in LENGTHS.items()}
    wrapped = {name: UnifiedHFDatasetWrapper(table) for name, table in tables.items()}
    mixture = Mixture(wrapped, WEIGHTS, stopping=SAMPLES)
    interleaved = datasets.interleave_datasets(
        list(tables.values()), probabilities=list(WEIGHTS.values()), seed=0
    ).with_format("torch")
    return {
        ARROW: ResumableDataLoader(mixture, BATCH_SIZE, shuffle=True, **options),
        INTERLEAVED: DataLoader(interleaved, BATCH_SIZE, shuffle=True, **options),
    }


def _arrow(dataset: TensorDataset) -> Dataset:
    x, label = (column.numpy() for column in dataset.tensors)
    features = Features({"x": List(Value("float32"), length=FEATURES), "label": Value("int64")})
    return Dataset.from_dict({"x": x, "label": label}, features=features)


def _grain(num_workers: int = 0) -> Any:
    options = grain.ReadOptions() if num_workers else grain.ReadOptions(num_threads=0)
    sources = [
        grain.MapDataset.source(NumpyPairs(length)).seed(number).shuffle().repeat()
        for number, length in enumerate(LENGTHS.values())
    ]
    mixed = grain.MapDataset.mix(sources, weights=list(WEIGHTS.values()))
    batches = mixed.batch(BATCH_SIZE).to_iter_dataset(options)
    if num_workers == 0:
        return batches
    return batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers))


def _nodes() -> Any:
    sources: Mapping[str, Any] = {
        name: nodes.Mapper(
            nodes.SamplerWrapper(RandomSampler(range(length))), pairs(length).__getitem__
        )
        for name, length in LENGTHS.items()
    }
    mixed = nodes.MultiNodeWeightedSampler(sources, WEIGHTS)
    batches = nodes.Batcher(mixed, BATCH_SIZE, drop_last=True)
    return nodes.Loader(nodes.Mapper(batches, default_collate))


# ---- the order and the state


def _of_the_order(quick: bool) -> list[Goal]:
    sources = {name: range(length * 10**6) for name, length in LENGTHS.items()}
    order = MixtureOrder.of(Mixture(sources, WEIGHTS, stopping=2 * FAR).blend, ShuffledOrder())
    indices = partial(order.indices, seed=1, epoch=0, dataset_length=order.length)
    starts = np.random.default_rng(0).integers(0, FAR, 20 if quick else 100)
    blocks = [np.arange(start, start + AT_ONCE) for start in starts]
    # The median: a block takes a millisecond, and other programs interrupt some.
    seconds = median(seconds_once(partial(indices, block)) for block in blocks)
    nanoseconds = seconds / AT_ONCE * 1e9
    far = np.arange(FAR, FAR + BATCH_SIZE)
    jump = seconds_per_call(partial(indices, far), at_least=0.05)
    peak = peak_allocated(partial(indices, far))
    return [
        Goal(
            f"an index in at most {GOAL_NANOSECONDS:g} ns, {AT_ONCE:,} at a time",
            f"{nanoseconds:.0f} ns",
            nanoseconds <= GOAL_NANOSECONDS,
        ),
        Goal(
            f"the batch at position 10^12 in at most {GOAL_JUMP * 1e3:g} ms",
            f"{jump * 1e3:.2f} ms",
            jump <= GOAL_JUMP,
        ),
        Goal(
            f"and in at most {GOAL_BYTES / 1e6:g} MB",
            f"{peak / 1e6:.2f} MB",
            peak <= GOAL_BYTES,
        ),
    ]


def _of_the_state() -> list[Goal]:
    few, many = (_state_size(number) for number in (3, 103))
    each = (many - few) / 100
    return [
        Goal(f"a state of at most {GOAL_STATE} bytes", f"{few}", few <= GOAL_STATE),
        Goal(
            f"and at most {GOAL_OF_SOURCE} bytes more for each source",
            f"{each:.0f}",
            each <= GOAL_OF_SOURCE,
        ),
    ]


def _state_size(sources: int) -> int:
    """Bytes as JSON, in the middle of a pass over sources whose content is not looked at."""
    mixture = Mixture({f"{n:x}": range(n + 10**6) for n in range(sources)})
    loader = ResumableDataLoader(mixture, BATCH_SIZE, shuffle=True)
    batches = iter(loader)
    for _ in range(20):
        next(batches)
    return len(json.dumps(loader.state_dict()))


if __name__ == "__main__":
    run(measure, __doc__)
