"""Custom samplers: a resumed pass is the uninterrupted one, or is refused beforehand."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from own_samplers import LENGTH, PATTERNS, Pattern
from subjects import Indices, ids

from dataporter import ResumableDataLoader, StateMismatchError

EPOCHS = 3


def loader_of(pattern: Pattern, workers: int = 0, **arguments: Any) -> ResumableDataLoader[Any]:
    own = pattern.build()
    if "sampler" in own:
        own["batch_size"] = 2
    torch.manual_seed(5)
    return ResumableDataLoader(Indices(LENGTH), num_workers=workers, **own, **arguments)


def set_epoch_of(loader: ResumableDataLoader[Any], epoch: int) -> None:
    for sampler in (loader.sampler, loader.batch_sampler):
        inner = getattr(sampler, "indices_from", sampler)
        for one in (inner, getattr(inner, "sampler", None)):
            if hasattr(one, "set_epoch"):
                one.set_epoch(epoch)


def run(
    loader: ResumableDataLoader[Any], pattern: Pattern, *, saves: bool = False
) -> tuple[list[list[int]], list[tuple[int, str]]]:
    """The batches of the rest of so many epochs; and states, with how many came before each."""
    seen: list[list[int]] = []
    states: list[tuple[int, str]] = []

    def save() -> None:
        if saves:
            states.append((len(seen), json.dumps(loader.state_dict())))

    save()
    for epoch in range(loader.epoch, EPOCHS):
        if pattern.sets_epoch:
            set_epoch_of(loader, epoch)
        for batch in loader:
            seen.append(ids(batch))
            save()
        seen.append([-1 - epoch])
        save()
    return seen, states


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", PATTERNS)
def test_resumed_is_uninterrupted_at_every_step_or_refused(name: str, workers: int) -> None:
    pattern = PATTERNS[name]
    whole, states = run(loader_of(pattern, workers), pattern, saves=True)
    first_end = whole.index([-1])
    for count, text in states if workers == 0 else states[1::3]:
        resumed = loader_of(pattern, workers)
        if pattern.resumes == "first" and count > first_end:
            with pytest.raises(StateMismatchError, match="sampler"):
                resumed.load_state_dict(json.loads(text))
            continue
        resumed.load_state_dict(json.loads(text))
        assert json.loads(json.dumps(resumed.state_dict())) == json.loads(text)
        assert run(resumed, pattern)[0] == whole[count:], (name, count, json.loads(text))
