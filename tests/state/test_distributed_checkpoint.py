"""Checkpoints of real worlds: saved by one number of ranks, loaded by another."""

from __future__ import annotations

import os
import signal
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from example_streams import Sharded, numbers
from subjects import Indices, ids
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from worlds import outcome, ranks_of

from dataporter import Mixture, ResumableDataLoader
from dataporter.integrations.torchtitan import EndlessLoader

LENGTH = 50


def loader_of() -> ResumableDataLoader[Any]:
    return ResumableDataLoader(Indices(LENGTH), 3, shuffle=True)


def take(batches: Any, count: int) -> list[int]:
    return [index for _, batch in zip(range(count), batches) for index in ids(batch)]


def saving_rank(folder: Path) -> dict[str, Any]:
    """Saves after two batches in three ways, and reads on during the asynchronous write."""
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


def test_two_and_three_ranks_resume_a_checkpoint_of_four(tmp_path: Path) -> None:
    """From distributed checkpoints, asynchronous or not, and from ``torch.save`` on rank 0."""
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


def killed_rank(folder: Path, asynchronous: bool) -> None:
    """Trains with a checkpoint after every second step, and is killed at the fourth."""
    loader, weights = loader_of(), {"w": torch.zeros(4)}
    journal = (folder / f"rank-{dist.get_rank()}").open("w")
    writing = None
    for step, batch in enumerate(loader):
        print(*ids(batch), file=journal, flush=True)
        if step == 3:
            if writing is not None:
                writing.result()
            dist.barrier()
            os.kill(os.getpid(), signal.SIGKILL)
        if step % 2 == 1:
            kept = {"loader": loader, **weights}
            if asynchronous:
                writing = dcp.async_save(kept, checkpoint_id=folder / "kept")
            else:
                dcp.save(kept, checkpoint_id=folder / "kept")


def resumed_rank(folder: Path) -> tuple[int, list[int]]:
    loader = loader_of()
    dcp.load({"loader": loader, "w": torch.zeros(4)}, checkpoint_id=folder / "kept")
    return loader.step, [index for batch in loader for index in ids(batch)]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_another_world_resumes_one_that_was_killed(tmp_path: Path, asynchronous: bool) -> None:
    with pytest.raises(ChildFailedError, match="exitcode  : -9"):
        ranks_of(2, killed_rank, tmp_path, asynchronous)
    lines = [(tmp_path / f"rank-{rank}").read_text().splitlines() for rank in range(2)]
    assert [len(of_rank) for of_rank in lines] == [4, 4]
    done = [int(index) for of_rank in lines for line in of_rank[:2] for index in line.split()]
    resumed = ranks_of(1, resumed_rank, tmp_path)
    assert resumed[0][0] == 2
    assert sorted(done + resumed[0][1]) == list(range(LENGTH))


def mixture_of(**weights: float) -> ResumableDataLoader[Any]:
    begins = {"a": 0, "b": 100, "c": 200}
    sources = {name: range(begins[name], begins[name] + 30) for name in weights}
    return ResumableDataLoader(Mixture(sources, weights, stopping=48), 4, shuffle=True)


def mixture_saving_rank(folder: Path) -> list[int]:
    loader = mixture_of(a=1, b=1)
    seen = [int(number) for batch in islice(loader, 3) for number in batch]
    dcp.save({"loader": loader}, checkpoint_id=folder / "mixture")
    return seen


def mixture_loading_rank(folder: Path) -> list[int]:
    loader = mixture_of(b=1, c=1)
    with pytest.warns(UserWarning, match="added 'c', left out 'a'"):
        dcp.load({"loader": loader}, checkpoint_id=folder / "mixture")
    return [int(number) for batch in loader for number in batch]


def test_other_sources_resume_a_distributed_checkpoint_of_a_mixture(tmp_path: Path) -> None:
    done = [number for rank in ranks_of(2, mixture_saving_rank, tmp_path) for number in rank]
    for world_size in (1, 2):
        loaded = ranks_of(world_size, mixture_loading_rank, tmp_path)
        rest = [number for rank in loaded for number in rank]
        assert len(done + rest) == 48
        of_b = [number for number in done + rest if 100 <= number < 200]
        assert len(set(of_b)) == len(of_b) > 20


def stream_of() -> EndlessLoader[Any]:
    return EndlessLoader(ResumableDataLoader(Sharded(LENGTH), 3, num_workers=2))


def stream_saving_rank(folder: Path) -> list[int]:
    """Through the endless loader, which gathers the parts, and through the loader alone."""
    endless = stream_of()
    seen = numbers(list(islice(endless, 3)))
    dcp.save({"loader": endless}, checkpoint_id=folder / "together")
    dcp.save({"loader": endless.loader}, checkpoint_id=folder / "apart")
    return seen


def stream_loading_rank(folder: Path) -> tuple[list[int], Any]:
    endless = stream_of()
    refused = outcome(lambda: dcp.load({"loader": endless.loader}, checkpoint_id=folder / "apart"))
    dcp.load({"loader": endless}, checkpoint_id=folder / "together")
    return numbers(list(endless.loader)), refused


def test_the_parts_of_a_stream_are_gathered_for_a_distributed_checkpoint(tmp_path: Path) -> None:
    seen = ranks_of(2, stream_saving_rank, tmp_path)
    loaded = ranks_of(3, stream_loading_rank, tmp_path)
    found = [number for part in (*seen, *(rest for rest, _ in loaded)) for number in part]
    assert sorted(found) == list(range(LENGTH))
    # The checkpoint of the loader alone keeps one rank's part, which no other world may load.
    assert all("rank 0" in str(refused) for _, refused in loaded)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_batches_delivered_early_go_through_a_distributed_checkpoint(tmp_path: Path) -> None:
    """With a list of lists in the state, and an empty one in the loader that loads it."""
    arguments: dict[str, Any] = {"shuffle": True, "num_workers": 2, "in_order": False}
    state = ResumableDataLoader(Indices(40), 4, seed=1, **arguments).state_dict()
    state = {**state, "step": 2, "position": 0, "early": [[4, 8, 0], [12, 16, 0]]}
    loader = ResumableDataLoader(Indices(40), 4, **arguments)
    loader.load_state_dict(state)
    dcp.save({"loader": loader}, checkpoint_id=tmp_path)
    resumed = ResumableDataLoader(Indices(40), 4, **arguments)
    dcp.load({"loader": resumed}, checkpoint_id=tmp_path)
    assert resumed.state_dict() == state
