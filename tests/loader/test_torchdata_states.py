"""States that torchdata 0.11 has saved: the rest of each epoch comes, without torchdata."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from subjects import Indices, ids
from torch.utils.data import IterableDataset, RandomSampler

from dataporter import InvalidStateError, ResumableDataLoader, ResumableSampler, StateMismatchError

LENGTH = 23
RECORDED = json.loads(Path(__file__).with_name("torchdata_states.json").read_text())
GENERATORS = {name: base64.b64decode(text) for name, text in RECORDED["generators"].items()}


def restored(value: Any) -> Any:
    if isinstance(value, dict) and value.keys() == {"generator of"}:
        return torch.frombuffer(bytearray(GENERATORS[value["generator of"]]), dtype=torch.uint8)
    if isinstance(value, dict):
        return {name: restored(part) for name, part in value.items()}
    return value


def arguments_for(state: Any) -> dict[str, Any]:
    main = state["_snapshot"]["_main_snapshot"] if "_snapshot" in state else state
    found = main["_sampler_iter_state"].get("sampler_iter_state")
    if found is None:
        return {}
    generator = torch.Generator()
    generator.set_state(found["generator"])
    return {"sampler": RandomSampler(range(LENGTH), generator=generator)}


CASES = [(restored(case["state"]), case["rest"]) for case in RECORDED["states"]]


def test_the_rest_of_the_epoch_comes() -> None:
    """Two runs without workers and two with 2, in sequence and shuffled, at each of 7 places."""
    assert len(CASES) == 28
    for state, rest in CASES:
        loader = ResumableDataLoader(Indices(LENGTH), 4, **arguments_for(state))
        loader.load_state_dict(state)
        assert [ids(batch) for batch in loader] == rest
    assert len(list(loader)) == 6, "and then the next epoch"


@pytest.mark.parametrize("state", [CASES[2][0], CASES[23][0]], ids=["in sequence", "shuffled"])
def test_workers_of_ours_change_nothing(state: Any) -> None:
    (rest,) = [rest for each, rest in CASES if each is state]
    loader = ResumableDataLoader(Indices(LENGTH), 4, num_workers=2, **arguments_for(state))
    loader.load_state_dict(state)
    assert [ids(batch) for batch in loader] == rest


def test_the_state_counts_for_the_epoch_that_is_set() -> None:
    loader = ResumableDataLoader(Indices(LENGTH), 4)
    loader.set_epoch(3)
    loader.load_state_dict(CASES[2][0])
    loader.set_epoch(3)
    assert (loader.epoch, loader.step, [ids(batch) for batch in loader]) == (3, 2, CASES[2][1])


class Stream(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(LENGTH))


def test_where_it_cannot_be_exact_it_is_refused() -> None:
    (state, _), (shuffled, _) = CASES[2], CASES[9]
    with pytest.raises(InvalidStateError, match="of an iterable dataset, or this loader's is one"):
        ResumableDataLoader(Stream(), 4).load_state_dict(state)
    with pytest.raises(InvalidStateError, match="only a ResumableDataLoader of a map-style data"):
        ResumableSampler(Indices(LENGTH), 4).load_state_dict(state)
    for order in ("shuffled", "torch", "blocks", "sequential"):
        with pytest.raises(StateMismatchError, match="sampler=RandomSampler"):
            ResumableDataLoader(Indices(LENGTH), 4, order=order).load_state_dict(shuffled)
    with pytest.raises(StateMismatchError, match="gives another order"):
        ResumableDataLoader(
            Indices(LENGTH),
            4,
            sampler=RandomSampler(range(LENGTH), generator=torch.Generator().manual_seed(6)),
        ).load_state_dict(shuffled)
