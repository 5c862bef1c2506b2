"""Ranks whose loaders an Accelerator prepares; writes the results of each scenario to a file.

torchrun ... prepared_ranks.py DIRECTORY
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from example_streams import Generated, Sharded, numbers
from torch.utils.data import DataLoader, WeightedRandomSampler

from dataporter import DataPorterError, ResumableDataLoader
from dataporter.integrations.accelerate import prepare

LENGTH = 21


def loader_of(*arguments: Any, **named: Any) -> ResumableDataLoader[Any]:
    return ResumableDataLoader(range(LENGTH), *arguments, shuffle=True, **{"seed": 3, **named})


BUILT_BEFORE = loader_of(4)
SIMPLE_BUILT_BEFORE = loader_of(4, strategy="simple")
WAITS_BEFORE = loader_of(4)
WAITS_BEFORE.seek(epoch=1, step=2)


def accelerator_with(**configuration: Any) -> Accelerator:
    return Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**configuration))


def passed(accelerator: Accelerator, loader: Any) -> dict[str, Any]:
    """A pass on this rank, and gathered from all ranks without the padding."""
    own, gathered, ends = [], [], []
    for batch in loader:
        own.append(batch.tolist())
        gathered += accelerator.gather_for_metrics(batch).tolist()
        ends.append(accelerator.gradient_state.end_of_dataloader)
    return {"own": own, "gathered": gathered, "ends": ends, "length": len(loader)}


def refusal(call: Callable[[], Any]) -> str:
    try:
        call()
    except DataPorterError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was refused"


def save(accelerator: Accelerator, folder: Path) -> None:
    accelerator.save_state(str(folder))
    accelerator.wait_for_everyone()  # all ranks write the same files, and load them next


def built_before() -> Any:
    accelerator = accelerator_with()
    prepared = accelerator.prepare(BUILT_BEFORE)
    shares = prepared.world_size, prepared.total_batch_size
    return passed(accelerator, prepared) | {"same": prepared is BUILT_BEFORE, "shares": shares}


def simple_built_before() -> Any:
    accelerator = accelerator_with()
    return passed(accelerator, accelerator.prepare(SIMPLE_BUILT_BEFORE))


def built_after() -> Any:
    accelerator = accelerator_with()
    return passed(accelerator, accelerator.prepare(loader_of(4)))


def explicit() -> Any:
    accelerator = accelerator_with()
    return passed(accelerator, prepare(accelerator, loader_of(4)))


def waiting_position() -> Any:
    loader = accelerator_with().prepare(WAITS_BEFORE)
    return {"epoch": loader.epoch, "own": [batch.tolist() for batch in loader]}


def split_batches() -> Any:
    accelerator = accelerator_with(split_batches=True)
    loader = accelerator.prepare(loader_of(8))
    again = accelerator.prepare(loader)
    return passed(accelerator, loader) | {"batch_size": again.batch_size}


def split_of_an_odd_batch() -> Any:
    return refusal(lambda: accelerator_with(split_batches=True).prepare(loader_of(7)))


def uneven_batches() -> Any:
    loader = accelerator_with(even_batches=False).prepare(loader_of(4))
    return [batch.tolist() for batch in loader]


def dropped() -> Any:
    accelerator = accelerator_with()
    return passed(accelerator, accelerator.prepare(loader_of(4, drop_last=True)))


def resumed_with_another_batch_size() -> Any:
    accelerator = accelerator_with()
    before, after = loader_of(4), loader_of(7)  # which leaves one batch
    before, after = accelerator.prepare(before, after)
    batches = iter(before)
    seen = accelerator.gather(next(batches)).tolist()
    after.load_state_dict(before.state_dict())
    return seen + passed(accelerator, after)["gathered"]


def custom_sampler(directory: Path) -> Any:
    weights = torch.arange(1, LENGTH + 1, dtype=torch.float64)

    def prepared(build: Callable[..., Any], **named: Any) -> Any:
        generator = torch.Generator().manual_seed(5)
        sampler = WeightedRandomSampler(weights, LENGTH, generator=generator)
        accelerator = accelerator_with()
        return accelerator, accelerator.prepare(
            build(range(LENGTH), 4, sampler=sampler, **named),
        )

    accelerator, loader = prepared(ResumableDataLoader, seed=3)
    whole = passed(accelerator, loader)
    loader.set_epoch(0)
    batches = iter(loader)
    next(batches)
    save(accelerator, directory / "own")
    again = [batch.tolist() for batch in batches]
    accelerator, resumed = prepared(ResumableDataLoader)
    accelerator.load_state(str(directory / "own"))
    rest = [batch.tolist() for batch in resumed]
    theirs = passed(*prepared(DataLoader))
    lengths = [len(batch) for batch in theirs["own"]]
    whole |= {"again": again, "rest": rest}
    return whole | {"theirs": lengths, "theirs_gathered": len(theirs["gathered"])}


def streams(directory: Path) -> Any:
    accelerator = accelerator_with()
    loader = accelerator.prepare(ResumableDataLoader(Sharded(30, 4), 2, seed=3))
    batches, delivered = iter(loader), []
    delivered = [next(batches) for _ in range(3)]
    save(accelerator, directory / "stream")
    rest = numbers(list(batches))
    accelerator = accelerator_with()
    resumed = accelerator.prepare(ResumableDataLoader(Sharded(30, 4), 2))
    accelerator.load_state(str(directory / "stream"))
    again = numbers(list(resumed))
    unsharded = refusal(lambda: accelerator.prepare(ResumableDataLoader(Generated(30), 2)))
    return {
        "delivered": numbers(delivered),
        "rest": rest,
        "again": again,
        "unsharded": unsharded,
    }


def given_world() -> Any:
    loader = accelerator_with().prepare(loader_of(4, rank=0, world_size=1))
    return sum(len(batch) for batch in loader)


if __name__ == "__main__":
    home = Path(sys.argv[1])
    found = {
        "built_before": built_before(),
        "simple_built_before": simple_built_before(),
        "built_after": built_after(),
        "explicit": explicit(),
        "waiting_position": waiting_position(),
        "split_batches": split_batches(),
        "split_of_an_odd_batch": split_of_an_odd_batch(),
        "uneven_batches": uneven_batches(),
        "dropped": dropped(),
        "another_batch_size": resumed_with_another_batch_size(),
        "custom_sampler": custom_sampler(home),
        "streams": streams(home),
        "given_world": given_world(),
    }
    accelerator = Accelerator(cpu=True)
    (home / f"rank-{accelerator.process_index}.json").write_text(json.dumps(found))
    accelerator.wait_for_everyone()
    # Skips Python's shutdown, during which gloo's threads may still ask for its lock, and abort.
    os._exit(0)
