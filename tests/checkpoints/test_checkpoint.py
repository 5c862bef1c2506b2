"""Checkpoints: a kill at any moment leaves a complete one; damage is detected and skipped."""

from __future__ import annotations

import errno
import os
import pickle
import random
import tempfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import checkpoint_writer
import pytest
import torch
import torch.distributed.checkpoint as dcp
from budgets import cases
from checkpoint_writer import content, number_of
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import Program

from dataporter import (
    CheckpointNotFoundError,
    ConfigurationError,
    DataPorterError,
    ResumableDataLoader,
    load_latest,
    save_atomically,
)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def unfinished(folder: Path) -> list[str]:
    return [name for name in names(folder) if name.endswith(".unfinished")]


@contextmanager
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# ---- the series


@settings(max_examples=cases(60))
@given(keeps=st.lists(st.integers(1, 4), min_size=1, max_size=8))
def test_the_newest_are_kept_and_nothing_else(keeps: list[int]) -> None:
    with tempfile.TemporaryDirectory() as directory, no_warnings():
        path = Path(directory) / "checkpoint.pt"
        expected: list[int] = []
        for number, keep in enumerate(keeps):
            assert save_atomically({"number": number}, path, keep) == path
            expected = [*expected, number][-keep:]
            *previous, newest = expected
            assert load_latest(path) == torch.load(path) == {"number": newest}
            found = sorted(set(Path(directory).iterdir()) - {path})
            assert [torch.load(older)["number"] for older in found] == previous


def test_torch_and_zipfile_read_a_checkpoint_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "model"  # no suffix
    model = torch.nn.Linear(3, 2)
    loader = ResumableDataLoader(range(10), 2, shuffle=True)
    saved = {"model": model.state_dict(), "loader": loader.state_dict()}
    save_atomically(saved, path)
    save_atomically(saved, path)
    assert names(tmp_path) == ["model", "model.previous-000001"]
    for loaded in (
        torch.load(path),
        torch.load(path, mmap=True),
        load_latest(str(path)),
        load_latest(path, mmap=True, map_location="cpu"),
    ):
        assert loaded["loader"] == loader.state_dict()
        assert torch.equal(loaded["model"]["weight"], model.weight)
    assert zipfile.ZipFile(path).testzip() is None


def test_series_in_one_folder_do_not_touch_each_other_or_other_files(tmp_path: Path) -> None:
    others = [
        *("checkpoint.000001.pt", "checkpoint.previous-1.pt", "checkpoint.previous-000001.bin"),
        *("checkpointXprevious-000001.pt", "my-checkpoint.previous-000001.pt"),
        *("checkpoint.pt.unfinished", "checkpoint.pt.0123456.unfinished", "notes.unfinished"),
    ]
    for name in others:
        (tmp_path / name).touch()
    for number in range(6):
        save_atomically(number, tmp_path / "checkpoint.pt", keep=2)
        save_atomically(-number, tmp_path / "best.pt", keep=1)
    mine = ["best.pt", "checkpoint.previous-000005.pt", "checkpoint.pt"]
    assert names(tmp_path) == sorted([*mine, *others])
    assert load_latest(tmp_path / "best.pt") == -5


def test_numbers_continue_past_six_digits(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_atomically(0, path)
    (tmp_path / "checkpoint.pt").rename(tmp_path / "checkpoint.previous-999999.pt")
    for number in (1, 2, 3):
        save_atomically(number, path)
    assert names(tmp_path) == [
        *("checkpoint.previous-1000000.pt", "checkpoint.previous-1000001.pt", "checkpoint.pt")
    ]


def test_an_unrelated_file_is_set_aside_and_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"by": "hand"}, path)
    save_atomically({"by": "dataporter"}, path)
    assert torch.load(tmp_path / "checkpoint.previous-000001.pt") == {"by": "hand"}


def test_a_file_is_on_disk_before_it_is_renamed_and_renamed_before_any_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.pt"
    for number in (1, 2):
        save_atomically(number, path, keep=2)
    calls = []
    for call in ("fsync", "link", "replace", "unlink"):
        plain = getattr(os, call)

        def recorded(*arguments: Any, call: str = call, plain: Any = plain) -> Any:
            is_folder = call == "fsync" and os.path.isdir(f"/proc/self/fd/{arguments[0]}")
            calls.append(f"{call} folder" if is_folder else call)
            return plain(*arguments)

        monkeypatch.setattr(os, call, recorded)
    save_atomically(3, path, keep=2)
    assert calls == ["fsync", "link", "replace", "fsync folder", "unlink"]


# ---- objects that cannot be saved


class Unpicklable:
    def __reduce__(self) -> Any:
        raise pickle.PicklingError("this object stays here")


def test_an_object_that_cannot_be_pickled_leaves_everything_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_atomically(content(1), path)
    with pytest.raises(pickle.PicklingError, match="stays here"):
        save_atomically({"values": torch.zeros(1000), "object": Unpicklable()}, path)
    assert names(tmp_path) == ["checkpoint.pt"]
    assert number_of(load_latest(path)) == 1


def test_a_full_disk_is_an_oserror_and_leaves_everything_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    writer = Program(checkpoint_writer.full, str(path))
    printed, _ = writer.communicate()
    assert writer.returncode == 0
    assert printed.decode() == f"OSError {errno.EFBIG}\n"
    assert names(tmp_path) == ["checkpoint.pt"]
    assert number_of(load_latest(path)) == 1


@pytest.mark.parametrize("call", ["fsync", "link", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_any_failing_call_leaves_everything_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    path = tmp_path / "checkpoint.pt"
    save_atomically(content(1), path)

    def refuse(*_: object) -> None:
        raise OSError(code, "refused")

    with monkeypatch.context() as patched:
        patched.setattr(os, call, refuse)
        with pytest.raises(OSError, match="refused"):
            save_atomically(content(2), path)
    assert unfinished(tmp_path) == []
    assert number_of(load_latest(path)) == 1
    # The number already used is not used again.
    save_atomically(content(3), path)
    assert names(tmp_path) == ["checkpoint.previous-000001.pt", "checkpoint.pt"]


def test_without_hard_links_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "checkpoint.pt"
    save_atomically(1, path, keep=1)
    with pytest.raises(OSError, match=r"hard links.*use keep=1"):
        save_atomically(2, path)
    save_atomically(3, path, keep=1)
    assert load_latest(path) == 3


def test_a_missing_folder_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        save_atomically(1, tmp_path / "nowhere" / "checkpoint.pt")
    assert names(tmp_path) == []


@pytest.mark.parametrize("keep", [0, -1, True, 1.5, None])
def test_keep_is_a_number_from_1(tmp_path: Path, keep: Any) -> None:
    with pytest.raises(ConfigurationError, match="keep="):
        save_atomically(1, tmp_path / "checkpoint.pt", keep)


@pytest.mark.parametrize("call", [lambda path: save_atomically(1, path), load_latest])
def test_a_folder_is_not_accepted_as_a_path(tmp_path: Path, call: Any) -> None:
    with pytest.raises(ConfigurationError, match="is a folder: name a file in it"):
        call(tmp_path)


# ---- damage


def three(folder: Path) -> tuple[Path, Path, Path]:
    """Checkpoints 3, 2 and 1, newest first."""
    path = folder / "checkpoint.pt"
    for number in (1, 2, 3):
        save_atomically({"number": number, "values": torch.arange(4)}, path)
    return path, *(folder / f"checkpoint.previous-00000{number}.pt" for number in (2, 1))


def cut(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


@settings(max_examples=cases(150))
@given(data=st.data())
def test_any_flipped_bit_and_any_truncation_is_detected(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        newest, second, _ = three(Path(folder))
        size = newest.stat().st_size
        if data.draw(st.booleans()):
            flip(newest, data.draw(st.integers(0, 8 * size - 1)))
        else:
            cut(newest, data.draw(st.integers(0, size - 1)))
        with pytest.warns(RuntimeWarning, match=r"checkpoint\.pt, because") as warned:
            assert load_latest(newest)["number"] == 2
        assert len(warned) == 1
        # A save over a damaged one works as usual.
        save_atomically({"number": 4}, newest)
        with no_warnings():
            assert load_latest(newest) == {"number": 4}
        assert second.exists()


def test_each_skipped_checkpoint_is_reported_with_its_reason(tmp_path: Path) -> None:
    newest, second, _ = three(tmp_path)
    cut(newest, 0)
    flip(second, 5000)
    with pytest.warns(RuntimeWarning) as warned:
        assert load_latest(newest)["number"] == 1
    first_message, second_message = (str(one.message) for one in warned)
    assert "checkpoint.pt, because it is truncated" in first_message
    assert "checkpoint.previous-000002.pt, because its bytes differ" in second_message
    assert "loaded checkpoint.previous-000001.pt instead" in first_message
    assert [Path(one.filename) for one in warned] == [Path(__file__)] * 2


def test_if_none_is_complete_the_error_names_each_and_the_folder(tmp_path: Path) -> None:
    files = three(tmp_path)
    for number, file in enumerate(files):
        cut(file, 100 * number)
    with pytest.raises(CheckpointNotFoundError) as caught:
        load_latest(files[0])
    for part in (str(tmp_path), *(file.name for file in files), "truncated", "backup"):
        assert part in str(caught.value)


HEADER = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'

WRITTEN_OTHERWISE: dict[str, tuple[Callable[[Path], object], str]] = {
    "torch.save": (lambda path: torch.save({"a": 1}, path), r"torch\.load\(path\) reads it"),
    "legacy": (
        lambda path: torch.save([1], path, _use_new_zipfile_serialization=False),
        r"torch\.load\(path\) reads it",
    ),
    "safetensors": (
        lambda path: path.write_bytes(len(HEADER).to_bytes(8, "little") + HEADER + bytes(8)),
        r"safetensors\.torch\.load_file",
    ),
    "json": (lambda path: path.write_text('{"dataporter": 1}'), r"json\.load reads it"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps([1, 2])), r"pickle\.load reads it"),
}


@pytest.mark.parametrize("kind", WRITTEN_OTHERWISE)
def test_a_file_of_another_function_is_named_as_that(kind: str, tmp_path: Path) -> None:
    write, expected = WRITTEN_OTHERWISE[kind]
    path = tmp_path / "model.pt"
    write(path)
    with pytest.raises(CheckpointNotFoundError, match=expected) as caught:
        load_latest(path)
    assert "backup" not in str(caught.value)
    assert "truncated" not in str(caught.value)
    if kind != "legacy":  # its end says nothing
        cut(path, path.stat().st_size - 3)
        with pytest.raises(CheckpointNotFoundError, match=r"truncated(.|\n)*backup"):
            load_latest(path)


def test_a_seal_that_is_cut_short_is_not_a_plain_file(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_atomically({"step": 3}, path)
    cut(path, path.stat().st_size - 10)
    with pytest.raises(CheckpointNotFoundError, match="truncated"):
        load_latest(path)


@pytest.mark.filterwarnings("ignore")  # that there is no process group
def test_a_folder_of_distributed_checkpoint_is_named_as_that(tmp_path: Path) -> None:
    dcp.save({"a": torch.ones(2)}, checkpoint_id=tmp_path / "step")
    with pytest.raises(ConfigurationError, match=r"torch\.distributed\.checkpoint\.load"):
        load_latest(tmp_path / "step")


def test_no_checkpoint_is_a_file_not_found_error_that_names_the_folder(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError) as caught:
            load_latest(folder / "checkpoint.pt")
        assert isinstance(caught.value, DataPorterError)
        assert f"no checkpoint checkpoint.pt in {folder}" in str(caught.value)


def test_if_the_newest_is_lost_the_previous_one_is_loaded(tmp_path: Path) -> None:
    newest, *_ = three(tmp_path)
    newest.unlink()
    assert load_latest(newest)["number"] == 2


def test_an_error_from_torch_load_does_not_count_as_damage(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_atomically({"number": 1}, path)
    save_atomically({"path": tmp_path}, path)
    with pytest.raises(pickle.UnpicklingError):
        load_latest(path)
    assert load_latest(path, weights_only=False) == {"path": tmp_path}


# ---- kills


@pytest.mark.parametrize(
    ("writers", "times"), [(1, 60), pytest.param(2, 30, marks=pytest.mark.slow)]
)
def test_writers_killed_at_any_moment_leave_the_checkpoints_they_announced(
    tmp_path: Path, writers: int, times: int
) -> None:
    """Each run is killed at random; the next removes its unfinished file."""
    seed = random.randrange(10**9)
    print(f"kills drawn from seed {seed}")
    path = tmp_path / "checkpoint.pt"
    program = Program(checkpoint_writer.killed_often, str(path), writers, times, seed)
    printed, errors = program.communicate()
    assert (program.returncode, errors) == (0, b"")
    assert int(printed) > times / 4, "hardly any kill interrupted the writing of a file"
    save_atomically(content(0), path)
    assert len(names(tmp_path)) == 3
    assert unfinished(tmp_path) == []


@pytest.mark.parametrize("call", ["fsync", "link", "replace"])
def test_a_death_between_the_steps_of_a_save_leaves_the_last_good_one(
    tmp_path: Path, call: str
) -> None:
    path = tmp_path / "checkpoint.pt"
    writer = Program(checkpoint_writer.dies_before, call, str(path))
    assert writer.wait(60) == -9
    assert len(unfinished(tmp_path)) == 1
    with no_warnings():
        assert number_of(load_latest(path)) == 3
    save_atomically(content(5), path)
    assert unfinished(tmp_path) == []
    assert [number_of(torch.load(file)) for file in sorted(tmp_path.glob("*.previous-*"))] == [2, 3]


def test_the_file_of_a_living_writer_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"

    class SavesMeanwhile:
        def __reduce__(self) -> Any:
            for number in range(3):
                save_atomically(number, path)
            assert len(unfinished(tmp_path)) == 1
            return OrderedDict, ()

    save_atomically({"slow": SavesMeanwhile()}, path)
    assert load_latest(path) == {"slow": OrderedDict()}
    assert unfinished(tmp_path) == []
