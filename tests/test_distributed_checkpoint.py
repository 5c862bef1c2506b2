"""Checkpoints of real worlds: saved by one number of ranks, loaded by another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from subjects import Indices, ids
from torch.distributed.checkpoint.stateful import Stateful
from worlds import ranks_of

from dataporter import ResumableDataLoader

LENGTH = 50


def loader_of() -> ResumableDataLoader[Any]:
    return ResumableDataLoader(Indices(LENGTH), 3, shuffle=True)


def take(batches: Any, count: int) -> list[int]:
    return [index for _, batch in zip(range(count), batches) for index in ids(batch)]


def saving_rank(folder: Path) -> dict[str, Any]:
    """Saves after two batches in three ways, going on while the asynchronous one is written."""
    loader = loader_of()
    assert isinstance(loader, Stateful)
    batches = iter(loader)
    seen = take(batches, 2)
    weights = {"w": torch.full((4,), 7.0)}
    state = loader.state_dict()
    dcp.save({"loader": loader, **weights}, checkpoint_id=folder / "dcp")
    written = dcp.async_save({"loader": loader, **weights}, checkpoint_id=folder / "async")
    take(batches, 1)
    written.result()
    if dist.get_rank() == 0:
        torch.save({"loader": state, **weights}, folder / "checkpoint.pt")
    dist.barrier()
    return {"seen": seen, "state": state}


def loading_rank(folder: Path) -> dict[str, Any]:
    found = {}
    for way in ("dcp", "async"):
        loader, weights = loader_of(), torch.zeros(4)
        dcp.load({"loader": loader, "w": weights}, checkpoint_id=folder / way)
        assert weights.tolist() == [7.0] * 4
        found[way] = (loader.state_dict(), [index for batch in loader for index in ids(batch)])
    loader = loader_of()
    loader.load_state_dict(torch.load(folder / "checkpoint.pt", weights_only=True)["loader"])
    found["torch.save"] = (loader.state_dict(), take(loader, LENGTH))
    return found


def test_a_checkpoint_of_four_ranks_is_gone_on_with_by_two_and_by_three(tmp_path: Path) -> None:
    """Through distributed checkpoints, written meanwhile or not, and ``torch.save`` from rank 0."""
    saved = ranks_of(4, saving_rank, tmp_path)
    done = [index for rank in saved for index in rank["seen"]]
    for world_size in (2, 3):
        loaded = ranks_of(world_size, loading_rank, tmp_path)
        for way in ("dcp", "async", "torch.save"):
            rest = [index for rank in loaded for index in rank[way][1]]
            repeats = -(LENGTH - len(done)) % world_size
            assert set(done + rest) == set(range(LENGTH))
            assert len(done + rest) == LENGTH + repeats
            for rank in loaded:
                state = rank[way][0]
                assert state == {**saved[0]["state"], "world_size": world_size}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_batches_delivered_early_go_through_a_distributed_checkpoint(tmp_path: Path) -> None:
    """A list of lists in the state, and an empty one in the loader that it is loaded into."""
    arguments: dict[str, Any] = {"shuffle": True, "num_workers": 2, "in_order": False}
    state = ResumableDataLoader(Indices(40), 4, seed=1, **arguments).state_dict()
    state = {**state, "step": 2, "position": 0, "early": [[4, 8, 0], [12, 16, 0]]}
    loader = ResumableDataLoader(Indices(40), 4, **arguments)
    loader.load_state_dict(state)
    dcp.save({"loader": loader}, checkpoint_id=tmp_path, no_dist=True)
    resumed = ResumableDataLoader(Indices(40), 4, **arguments)
    dcp.load({"loader": resumed}, checkpoint_id=tmp_path, no_dist=True)
    assert resumed.state_dict() == state
