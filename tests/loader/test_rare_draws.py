"""Rare draws: what a loader delivers does not depend on which draws it has seen before (C8)."""

from __future__ import annotations

import os
import random
import signal
import warnings
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dataporter import ResumableDataLoader
from dataporter.seeding.generators import isolated_generators, saved_generators, seed_generators
from dataporter.seeding.hashing import sample_key

LENGTH, EPOCHS = 120, 2


@dataclass(frozen=True)
class Rarely:
    """A dataset whose samples draw where their index is in these sets."""

    python: frozenset[int]
    numpy: frozenset[int]
    torch: frozenset[int]

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> list[float]:
        drawn = [float(index)]
        if index in self.python:
            drawn.append(random.random())
        if index in self.numpy:
            drawn.append(float(np.random.standard_normal()))
        if index in self.torch:
            drawn.append(float(torch.randn(())))
        return drawn


def by_definition(dataset: Rarely, loader: ResumableDataLoader[Any]) -> list[list[list[float]]]:
    """All batches of the epochs, each sample read with all generators seeded."""
    batches = []
    with isolated_generators():
        for epoch in range(EPOCHS):
            position = 0
            for step in range(len(loader)):
                batch = []
                for index in loader.samples_at(epoch, step).tolist():
                    seed_generators(sample_key(loader.seed, epoch, position))
                    batch.append(dataset[index])
                    position += 1
                batches.append(batch)
    return batches


def rest(loader: ResumableDataLoader[Any], kills: set[int]) -> list[Any]:
    """The batches up to the end of the last epoch, with a worker killed at some of them."""
    batches = []
    for _ in loader.epochs(EPOCHS):
        for batch in loader:
            batches.append(batch)
            if len(batches) in kills and (workers := loader.usage().workers):
                os.kill(workers[len(batches) % len(workers)], signal.SIGKILL)
    return batches


# Of 15 batches of 8 samples; the first of a worker is read in another way than the others.
SOME = st.one_of(
    st.just(frozenset()),
    st.just(frozenset(range(LENGTH))),
    st.frozensets(st.integers(0, LENGTH - 1), min_size=1, max_size=3),
    st.just(frozenset(range(0, LENGTH, 2))),
)


@pytest.mark.parametrize("workers", [0, 2])
@settings(deadline=None)
@given(data=st.data())
def test_resumes_and_kills_change_no_draw(workers: int, data: st.DataObject) -> None:
    dataset = Rarely(*(data.draw(SOME) for _ in range(3)))

    def loader(workers: int) -> ResumableDataLoader[Any]:
        return ResumableDataLoader(
            dataset,
            8,
            shuffle=True,
            seed=3,
            num_workers=workers,
            collate_fn=list,
            worker_restarts=50,
            persistent_workers=workers > 0,
        )

    expected = by_definition(dataset, loader(0))
    stops = data.draw(st.integers(0, 14))
    kills = data.draw(st.frozensets(st.integers(1, 29), max_size=2)) if workers else frozenset()
    first = loader(workers)
    before = saved_generators()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of workers that are replaced
        delivered = list(islice(first, stops))
        state = first.state_dict()
        second = loader(data.draw(st.sampled_from([0, workers])))
        second.load_state_dict(state)
        delivered += rest(second, set(kills))
    assert saved_generators()[:2] == before[:2], "torch's moves as with torch's loader"
    assert delivered == expected
