"""torchdata's stateful samplers resume at every step, as with torchdata's own loader."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from subjects import Indices, ids
from torchdata.stateful_dataloader.sampler import (
    BatchSampler,
    RandomSampler,
    StatefulDistributedSampler,
)

from dataporter import ResumableDataLoader

LENGTH, EPOCHS = 11, 3


def random(**arguments: Any) -> Any:
    return RandomSampler(range(LENGTH), generator=torch.Generator().manual_seed(3), **arguments)


def distributed() -> Any:
    return StatefulDistributedSampler(range(LENGTH), 1, 0)  # type: ignore[arg-type]


SAMPLERS: dict[str, Callable[[], dict[str, Any]]] = {
    "random": lambda: {"sampler": random(), "batch_size": 3},
    "random batches": lambda: {"batch_sampler": BatchSampler(random(), 3, False)},
    "repeating": lambda: {
        "batch_sampler": BatchSampler(random(replacement=True, num_samples=50), 4, True)
    },
    "distributed": lambda: {"sampler": distributed(), "batch_size": 3},
    "distributed batches": lambda: {"batch_sampler": BatchSampler(distributed(), 3, False)},
    "batches of a range": lambda: {"batch_sampler": BatchSampler(range(LENGTH), 3, True)},
}


@pytest.mark.parametrize("sets_epoch", [False, True])
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.filterwarnings("ignore:this pass has no batch")
def test_every_step_of_every_epoch(name: str, sets_epoch: bool) -> None:
    def build() -> ResumableDataLoader[Any]:
        return ResumableDataLoader(Indices(LENGTH), seed=1, **SAMPLERS[name]())

    def run(loader: ResumableDataLoader[Any], states: list[tuple[int, str]]) -> list[Any]:
        seen: list[Any] = []
        for epoch in range(loader.epoch, EPOCHS):
            if sets_epoch:
                loader.set_epoch(epoch)
            for batch in loader:
                seen.append(ids(batch))
                states.append((len(seen), json.dumps(loader.state_dict())))
            states.append((len(seen), json.dumps(loader.state_dict())))
        return seen

    states: list[tuple[int, str]] = []
    whole = run(build(), states)
    for count, state in states:
        resumed = build()
        resumed.load_state_dict(json.loads(state))
        assert run(resumed, []) == whole[count:], count
