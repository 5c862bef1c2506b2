"""Inspecting checkpoints: finding states, reporting on them, and executing nothing."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from subjects import Indices, ids
from torch.utils.data import IterableDataset, RandomSampler
from typer.testing import CliRunner

from dataporter import (
    BlockShuffledOrder,
    CheckpointNotFoundError,
    KeyBasedDtypeConverter,
    ResumableDataLoader,
    ResumableSampler,
    UnreadableCheckpointError,
    inspect_checkpoint,
    save_atomically,
)
from dataporter_cli import main

LENGTH = 103
RUN_COMMAND = "from dataporter_cli import main; main()"


def loader_at(steps: int, **arguments: Any) -> ResumableDataLoader[Any]:
    chosen: dict[str, Any] = {"batch_size": 4, "shuffle": True, "seed": 7, **arguments}
    loader = ResumableDataLoader(Indices(LENGTH), **chosen)
    batches = iter(loader)
    for _ in range(steps):
        next(batches)
    return loader


def state_at(steps: int, **arguments: Any) -> dict[str, Any]:
    return loader_at(steps, **arguments).state_dict()


def test_a_digest_that_its_own_order_does_not_have_is_a_fault(tmp_path: Path) -> None:
    torch.save({"loader": {**state_at(3), "order_digest": 5}}, tmp_path / "checkpoint.pt")
    (fault,) = inspect_checkpoint(tmp_path / "checkpoint.pt").faults
    assert "order_digest" in fault


def ran(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["inspect", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


# ---- the next batches are those that a resumed loader delivers


@given(
    steps=st.integers(0, 9),
    length=st.integers(1, 60),
    batch_size=st.integers(1, 9),
    world_size=st.integers(1, 5),
    tail=st.sampled_from(["pad", "drop", "uneven"]),
    order=st.sampled_from(["shuffled", "sequential", "torch", BlockShuffledOrder(3, 2)]),
    epoch=st.integers(0, 3),
)
def test_the_next_indices_are_those_that_each_rank_receives(
    tmp_path_factory: pytest.TempPathFactory,
    steps: int,
    length: int,
    batch_size: int,
    world_size: int,
    tail: Any,
    order: Any,
    epoch: int,
) -> None:
    def rank_of(rank: int) -> ResumableDataLoader[Any]:
        return ResumableDataLoader(
            Indices(length),
            batch_size,
            order=order,
            seed=5,
            strategy="distributed",
            tail=tail,
            rank=rank,
            world_size=world_size,
        )

    loader = rank_of(0)
    loader.set_epoch(epoch)
    for _, _ in zip(range(steps), loader):
        pass
    path = tmp_path_factory.mktemp("state") / "state.json"
    path.write_text(json.dumps(loader.state_dict()))
    (found,) = inspect_checkpoint(path, ranks=world_size, indices=batch_size).states
    assert found.progress is not None
    assert 0 <= found.progress <= 1
    for batch in found.next:
        resumed = rank_of(batch.rank)
        resumed.load_state_dict(loader.state_dict())
        batches = [ids(delivered) for delivered in resumed]
        if not batches and batch.epoch != loader.epoch:
            batches = [ids(delivered) for delivered in resumed]
        assert list(batch.indices) == (batches[0] if batches else [])
    if not found.next:
        assert not list(rank_of(0))


def test_batches_delivered_early_are_not_among_the_next(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"num_workers": 2, "in_order": False}
    state = state_at(0, **arguments) | {"step": 2, "early": [[4, 8, 0], [12, 16, 0]]}
    torch.save(state, tmp_path / "state.pt")
    (found,) = inspect_checkpoint(tmp_path / "state.pt").states
    assert found.progress == pytest.approx(8 / LENGTH)
    resumed = ResumableDataLoader(Indices(LENGTH), 4, shuffle=True, seed=7)
    resumed.load_state_dict(state)
    assert list(found.next[0].indices) == ids(next(iter(resumed)))


def test_the_progress_is_the_delivered_share_of_the_epoch(tmp_path: Path) -> None:
    for arguments, steps, expected in (
        ({}, 0, 0.0),
        ({}, 13, 52 / 103),
        ({}, 26, 1.0),
        ({"tail": "drop"}, 25, 1.0),
        ({"tail": "drop"}, 5, 20 / 100),
    ):
        save_atomically(state_at(steps, **arguments), tmp_path / "state.pt")
        (state,) = inspect_checkpoint(tmp_path / "state.pt").states
        assert state.progress == pytest.approx(expected)


def test_a_completely_delivered_epoch_is_followed_by_the_next_one(tmp_path: Path) -> None:
    torch.save(state_at(26), tmp_path / "state.pt")
    (state,) = inspect_checkpoint(tmp_path / "state.pt").states
    assert state.next[0].epoch == 1
    assert any("delivered to its end" in note for note in state.notes)


def test_what_may_change_follows_from_the_strategy(tmp_path: Path) -> None:
    for strategy, free in (("simple", 1), ("advanced", 3), ("distributed", 3)):
        torch.save(state_at(1, strategy=strategy), tmp_path / "state.pt")
        (state,) = inspect_checkpoint(tmp_path / "state.pt").states
        assert len(state.may_change) == free
        said = " ".join(state.may_change)
        assert ("batch size" in said) == (free > 1)
        assert ("number of ranks" in said) == (free > 2)


def test_nothing_is_guessed_about_a_custom_sampler_or_order(tmp_path: Path) -> None:
    class Backwards:
        name, version = "backwards", 3

        def epoch_length(self, dataset_length: int) -> int:
            return dataset_length

        def indices(self, positions: Any, *, seed: int, epoch: int, dataset_length: int) -> Any:
            return dataset_length - 1 - positions

    sampled = {"shuffle": None, "sampler": RandomSampler(range(LENGTH))}
    for arguments in (sampled, {"shuffle": None, "order": Backwards()}):
        torch.save(state_at(2, **arguments), tmp_path / "state.pt")
        (state,) = inspect_checkpoint(tmp_path / "state.pt").states
        assert state.next == ()
        assert state.progress is None
        assert any("custom" in note for note in state.notes)


def test_an_order_of_another_version_is_not_computed(tmp_path: Path) -> None:
    torch.save({**state_at(2), "order_version": 9}, tmp_path / "state.pt")
    (state,) = inspect_checkpoint(tmp_path / "state.pt").states
    assert state.next == ()
    assert any("version 9" in note for note in state.notes)


def test_an_order_that_takes_long_to_compute_is_not_computed(tmp_path: Path) -> None:
    state = {**state_at(2, order="torch", shuffle=None), "dataset_length": 10**9}
    torch.save(state, tmp_path / "state.pt")
    (found,) = inspect_checkpoint(tmp_path / "state.pt").states
    assert found.next == ()
    assert any("run forward" in note for note in found.notes)


def test_a_state_of_a_trillion_samples_is_reported_at_once(tmp_path: Path) -> None:
    state = {**state_at(2), "dataset_length": 10**12}
    (tmp_path / "state.json").write_text(json.dumps(state))
    (found,) = inspect_checkpoint(tmp_path / "state.json").states
    assert found.next[0].count == 4


# ---- streams


class Words(IterableDataset[int]):
    num_shards = 5

    def shard(self, num_shards: int, index: int) -> list[int]:
        return list(range(index, 50, num_shards))

    def __iter__(self) -> Any:
        return iter(range(50))


@pytest.mark.parametrize("steps", [0, 1, 4, 7, 12])
def test_the_next_shard_is_the_one_that_is_read(tmp_path: Path, steps: int) -> None:
    loader = ResumableDataLoader(Words(), batch_size=4, seed=1)
    batches = iter(loader)
    for _ in range(steps):
        next(batches)
    torch.save({"data": loader.state_dict()}, tmp_path / "state.pt")
    (state,) = inspect_checkpoint(tmp_path / "state.pt").states
    assert state.reads == "stream"
    assert state.position == loader.position
    batch = state.next[0]
    assert batch.shard is not None
    assert batch.offset is not None
    assert next(batches)[0] == batch.shard + 5 * batch.offset


def test_the_parts_of_the_ranks_are_distinguished(tmp_path: Path) -> None:
    parts = []
    for rank in range(2):
        loader = ResumableDataLoader(
            Words(), batch_size=4, seed=1, rank=rank, world_size=2, strategy="distributed"
        )
        next(iter(loader))
        parts.append(loader.state_dict())
    torch.save({"parts": parts}, tmp_path / "state.pt")
    states = inspect_checkpoint(tmp_path / "state.pt").states
    assert [state.next[0].rank for state in states] == [0, 1]
    for state in states:
        assert any("number of ranks" in words for words in state.must_stay)
        assert any("gather=True" in note for note in state.notes)


# ---- where states are found


def test_states_are_found_at_any_depth(tmp_path: Path) -> None:
    converter = KeyBasedDtypeConverter({"image": "float16"})
    converter.convert_batch({"image": torch.rand(3)})
    sampler = ResumableSampler(LENGTH, 4, shuffle=True, seed=7)
    checkpoint = {
        "model": {"weight": torch.rand(10, 10), "names": ["a", {"b": 2}]},
        "loops": {"fit": [{"state": state_at(1)}, None]},
        "dataporter": state_at(2),
        "text": json.dumps({"inner": [state_at(3)]}),
        7: sampler.state_dict(delivered=0),
        "converter": converter.state_dict(),
        "versions": {"dataporter": "0.1.0", "torch": "2.11"},
    }
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    report = inspect_checkpoint(tmp_path / "checkpoint.pt")
    assert {state.where: state.step for state in report.states} == {
        "['loops']['fit'][0]['state']": 1,
        "['dataporter']": 2,
        "['text']['inner'][0]": 3,
        "[7]": 0,
    }
    (found,) = report.files[0].converters
    assert (found.where, found.originals) == ("['converter']", {"image": ["float32"]})


@pytest.mark.filterwarnings("ignore:.*failed .on_error=")
def test_the_samples_that_failed_are_listed(tmp_path: Path) -> None:
    class Failing(Indices):
        def __getitem__(self, index: int) -> int:
            if index % 10 == 7:
                raise OSError(f"[red]truncated[/] {index}")
            return index

        def sample_name(self, index: int) -> str:
            return f"/data/{index}.png"

    loader = ResumableDataLoader(Failing(700), 70, on_error="skip", seed=7)
    list(loader)
    for _ in zip(range(2), loader):
        pass
    path = save_atomically(loader.state_dict(), tmp_path / "checkpoint.pt")
    report = inspect_checkpoint(path)
    (state,) = report.states
    assert state.failures == tuple(loader.failures)
    assert state.failed == loader.failures.total == 84
    text = str(report)
    assert re.search(
        rf"failed +84 samples, of which {loader.failures.left_out} are in no record", text
    )
    assert re.search(r"index +name +epoch +step +position +times +error", text)
    assert re.search(r"17 +/data/17\.png +0 +0 +17 +2 +OSError: \[red\]truncated\[/\] 17", text)
    shown = CliRunner().invoke(main, ["inspect", str(path), "--json"])
    (parsed,) = json.loads(shown.stdout)["files"][0]["states"]
    assert parsed["failed"] == 84
    assert parsed["failures"][1] == {
        "index": 17,
        "name": "/data/17.png",
        "epoch": 0,
        "step": 0,
        "position": 17,
        "error": "OSError",
        "message": "[red]truncated[/] 17",
        "count": 2,
    }
    unharmed = inspect_checkpoint(save_atomically(state_at(1), tmp_path / "other.pt"))
    assert not re.search(r"failed +\d|times +error", str(unharmed))


def test_a_checkpoint_that_contains_itself_is_walked_once(tmp_path: Path) -> None:
    checkpoint: dict[str, Any] = {"state": state_at(1), "list": []}
    checkpoint["list"].append(checkpoint)
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    assert len(inspect_checkpoint(tmp_path / "checkpoint.pt").states) == 1


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_distributed_checkpoint_is_read_without_its_tensors(tmp_path: Path) -> None:
    loader = loader_at(2)
    dcp.save(
        {"loader": loader, "w": torch.zeros(4), "parts": {"list": [state_at(5), 1]}},
        checkpoint_id=tmp_path / "step_2",
    )
    for path in (tmp_path / "step_2", tmp_path):
        states = inspect_checkpoint(path).states
        assert {state.where: state.step for state in states} == {
            "['loader']": 2,
            "['parts']['list'][0]": 5,
        }
        assert states[0].state == loader.state_dict()


def test_a_folder_lists_all_checkpoints_of_a_series_newest_first(tmp_path: Path) -> None:
    for step in range(1, 5):
        save_atomically({"loader": state_at(step)}, tmp_path / "checkpoint.pt", keep=4)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("nothing")
    assert [state.step for state in inspect_checkpoint(tmp_path).states] == [4, 3, 2, 1]
    damaged = bytearray((tmp_path / "checkpoint.pt").read_bytes())
    damaged[100] ^= 1
    (tmp_path / "checkpoint.pt").write_bytes(damaged)
    report = inspect_checkpoint(tmp_path)
    assert [state.step for state in report.states] == [3, 2, 1]
    assert "load_latest skips it" in report.faults[0]


# ---- unreadable files


class Harmful:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["HARMED"],)


def damage(kind: str, path: Path) -> None:
    torch.save({"loader": state_at(1), "w": torch.rand(100)}, path)
    whole = path.read_bytes()
    contents: dict[str, Callable[[], bytes]] = {
        "truncated": lambda: whole[: len(whole) // 2],
        "empty": lambda: b"",
        "text": lambda: b"hello",
        "half a JSON": lambda: b'{"dataporter": 1, ',
        "changed": lambda: whole[:200] + bytes([whole[200] ^ 255]) + whole[201:],
        "another pickle": lambda: pickle.dumps(state_at(1)),
    }
    path.write_bytes(contents[kind]())


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("truncated", "is truncated"),
        ("empty", "is empty"),
        ("text", "is not a checkpoint"),
        ("half a JSON", "not JSON, or is truncated"),
        ("changed", "damaged"),
        ("another pickle", "damaged"),
    ],
)
def test_a_file_that_is_no_complete_checkpoint_gets_one_clear_line(
    tmp_path: Path, kind: str, said: str
) -> None:
    path = tmp_path / "checkpoint.pt"
    damage(kind, path)
    with pytest.raises(UnreadableCheckpointError, match=said):
        inspect_checkpoint(path)
    code, _, errors = ran(path)
    assert code == 2
    assert errors.count("\n") == 1
    assert said in errors


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_objects_are_named_and_never_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    harmed = tmp_path / "harmed"
    monkeypatch.setenv("HARMED", str(harmed))
    for value, name in ((argparse.Namespace(a=1), "argparse.Namespace"), (Harmful(), "mkdir")):
        path = tmp_path / "checkpoint.pt"
        torch.save(
            {"args": value, "loader": state_at(1)}, path, _use_new_zipfile_serialization=zipped
        )
        with pytest.raises(UnreadableCheckpointError, match=f"pickled objects .*{name}"):
            inspect_checkpoint(path)
        assert not harmed.exists()


def test_the_metadata_of_a_distributed_checkpoint_is_never_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harmed = tmp_path / "harmed"
    monkeypatch.setenv("HARMED", str(harmed))
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / ".metadata").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(UnreadableCheckpointError, match=r"not from torch\.distributed"):
        inspect_checkpoint(folder)
    assert not harmed.exists()
    pickle.loads((folder / ".metadata").read_bytes())
    assert harmed.exists()  # the pickle does execute when it is loaded


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": torch.ones(3)}, "'seed'"),
        ({"step": "x"}, "'step'"),
        ({"dataporter": 99}, "upgrade dataporter"),
        ({"position": 400}, "do not fit"),
        ({"tail": "other"}, "'tail'"),
        ({"batch_size": 0}, "'batch_size'"),
    ],
)
def test_a_damaged_state_says_which_field_is_wrong(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"loader": {**state_at(2), **changes}}, path)
    report = inspect_checkpoint(path)
    assert report.states == ()
    assert said in report.faults[0]
    code, shown, _ = ran(path)
    assert code == 2
    assert said in shown
    json.loads(ran(path, "--json")[1])


def test_a_state_without_its_schema_version_is_still_recognised(tmp_path: Path) -> None:
    state = state_at(2)
    del state["dataporter"]
    torch.save(state, tmp_path / "state.pt")
    (fault,) = inspect_checkpoint(tmp_path / "state.pt").faults
    assert "'dataporter'" in fault


def test_a_path_without_a_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError):
        inspect_checkpoint(tmp_path / "missing.pt")
    assert ran(tmp_path / "missing.pt")[0] == 2
    assert ran(tmp_path)[0] == 1


def test_tensors_are_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    size = 256 << 20
    torch.save({"w": torch.zeros(size, dtype=torch.uint8), "loader": state_at(3)}, path)

    code = (
        "import sys, dataporter\n"
        "def peak(): return int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
        "before = peak()\n"
        "(state,) = dataporter.inspect_checkpoint(sys.argv[1]).states\n"
        "print(state.step, peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    step, grown = map(int, done.stdout.split())
    assert step == 3
    assert grown * 1024 < size / 4


# ---- the command


def test_the_command_prints_its_report_without_colour(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"loader": state_at(13)}, path)
    code, shown, errors = ran(path)
    assert (code, errors) == (0, "")
    assert "\x1b" not in shown
    for text in ("['loader']", "52 of 103", "50.4%", "advanced", "epoch 0, step 13: "):
        assert text in shown
    code, shown, _ = ran(path, "--json", "--indices", 2)
    (file,) = json.loads(shown)["files"]
    (state,) = file["states"]
    assert state["progress"] == pytest.approx(52 / 103)
    batch = next(iter(loader_at(0)))
    assert len(state["next"][0]["indices"]) == 2
    assert state["next"][0]["count"] == len(batch)


def test_the_command_reports_a_checkpoint_without_states(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"model": torch.rand(3)}, path)
    code, _, errors = ran(path)
    assert code == 1
    assert "holds no state of a loader" in errors


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["inspect", str(tmp_path / "none.pt"), "--debug"])
    assert result.exit_code == 2
    assert result.stderr.startswith("Traceback (most recent call last)")
    assert "\ndataporter: inspect: " in result.stderr


def test_the_table_prints_in_ascii(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"loader": state_at(13)}, path)
    done = CliRunner(charset="ascii").invoke(main, ["inspect", str(path)])
    assert done.exit_code == 0
    assert b"##########----------" in done.stdout_bytes


def test_the_code_in_the_documentation_runs_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs" / "commands.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(block, {})
