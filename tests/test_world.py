"""Real ranks: a loader finds its place in a process group, and one state serves another world."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dataporter import ConfigurationError, ResumableDataLoader

RANK = """
import json, sys
import torch.distributed as dist
from dataporter import ResumableDataLoader

rank, world_size, store, steps = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=world_size)
loader = ResumableDataLoader(range(40), 2, shuffle=True, seed=3)
if len(sys.argv) > 5:
    loader.load_state_dict(json.loads(sys.argv[5]))
seen = []
for _, batch in zip(range(steps), loader):
    seen += batch.tolist()
print(json.dumps({
    "seen": seen,
    "state": loader.state_dict(),
    "place": [loader.strategy.name, loader.rank, loader.world_size],
}))
dist.destroy_process_group()
"""


def run_world(world_size: int, steps: int, store: Path, *state: str) -> list[dict[str, Any]]:
    arguments = [str(world_size), str(store), str(steps), *state]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), *arguments],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        outputs = [rank.communicate(timeout=90)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [json.loads(output) for output in outputs]


@pytest.mark.slow
def test_ranks_find_their_place_and_one_state_serves_another_world(tmp_path: Path) -> None:
    two = run_world(2, 4, tmp_path / "two")
    assert [rank["place"] for rank in two] == [["distributed", 0, 2], ["distributed", 1, 2]]
    assert two[0]["state"] == two[1]["state"]
    three = run_world(3, 99, tmp_path / "three", json.dumps(two[0]["state"]))
    seen = [index for rank in [*two, *three] for index in rank["seen"]]
    assert set(seen) == set(range(40))
    assert len(seen) == 40, "24 samples were left, which three ranks share without a repeat"


def test_a_group_s_ranks_need_one_seed() -> None:
    with pytest.raises(ConfigurationError, match="2 ranks needs seed="):
        ResumableDataLoader(range(8), 2, rank=0, world_size=2)
