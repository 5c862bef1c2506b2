"""SharedSequence: what comes out is what went in, in every process, from one block of memory."""

from __future__ import annotations

import copy
import functools
import gc
import math
import multiprocessing
import os
import pickle
import random
import struct
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from programs import Program
from torch.utils.data import DataLoader, Dataset, Subset

from dataporter import ConfigurationError, ResumableDataLoader, SharedSequence
from dataporter.shared import block as shared_block
from dataporter.shared.block import Handle, create_block, find_block

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

Pair = namedtuple("Pair", "left right")


@dataclass
class Note:
    text: str
    score: float


class Count(int):
    pass


class Unwilling:
    """Cannot be pickled."""

    def __reduce__(self) -> Any:
        raise RuntimeError("not me")


class OneWay:
    """Can be pickled, but not unpickled."""

    def __reduce__(self) -> Any:
        return math.sqrt, (-1,)


def same(mine: Any, theirs: Any) -> bool:
    """Whether two objects are equal, with the same types and bits throughout."""
    if type(mine) is not type(theirs):
        return False
    if isinstance(mine, float):
        return struct.pack("d", mine) == struct.pack("d", theirs)
    if isinstance(mine, dict):
        return same(list(mine.items()), list(theirs.items()))
    if isinstance(mine, list | tuple):
        return len(mine) == len(theirs) and all(map(same, mine, theirs))
    if isinstance(mine, Note):
        return same((mine.text, mine.score), (theirs.text, theirs.score))
    if isinstance(mine, torch.Tensor):
        return mine.dtype == theirs.dtype and torch.equal(mine, theirs)
    return bool(mine == theirs)


texts = st.text(st.characters(), max_size=8) | st.sampled_from(["", "\ud800", "\udfff\ud83d", "é"])
integers = (
    st.integers(-300, 300)
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([s * 2**b + d for s in (1, -1) for b in (7, 15, 31, 63) for d in (-1, 0, 1)])
)
floats = st.floats() | st.sampled_from(
    [-0.0, struct.unpack("d", b"\x01\x02\x03\x04\x05\x06\xf8\xff")[0]]
)
columns = [texts, integers, st.integers(-9, 9), floats, st.booleans(), st.none(), st.binary()]
others = st.sampled_from(
    [
        Pair(1, "a"),
        Note("b", -0.0),
        torch.arange(3),
        Count(7),
        {1: 2},
        {True: 2},
        {1.0: 2},
        {Count(1): 0},
    ]
)
scalars = st.one_of(*columns)
values = st.recursive(
    scalars | others,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from("abcd") | texts, inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def alike(draw: st.DrawFn) -> list[Any]:
    """Records of one shape, or values of one type."""
    fields = draw(st.lists(st.sampled_from([*columns, values]), max_size=4))
    names = draw(st.lists(texts, min_size=len(fields), max_size=len(fields), unique=True))
    row = draw(
        st.sampled_from(
            [
                st.tuples(*fields),
                st.tuples(*fields).map(list),
                st.tuples(*fields).map(lambda row: dict(zip(names, row))),
                draw(st.sampled_from(columns)),
            ]
        )
    )
    return draw(st.lists(row, max_size=12))


# Repeated, they fill many pieces of columns before a value that does not fit.
object_lists = st.lists(values, max_size=8) | st.builds(
    lambda before, times, late, after: before * times + late + after,
    alike(),
    st.sampled_from([1, 1, 1, 300]),
    st.lists(values, max_size=2),
    alike(),
)
slices = st.builds(
    slice,
    st.none() | st.integers(-15, 15),
    st.none() | st.integers(-15, 15),
    st.none() | st.sampled_from([-7, -3, -1, 1, 2, 5]),
)

EXAMPLES = [{"path": f"images/{i:08d}.jpg", "label": i % 7, "score": i / 8} for i in range(40)]


@given(object_lists)
@example([0, False, 1.0, 1, "1"])
@example([0, True, 1])
@example([True, 0, False])
@example([{"a": 0.5}, {"a": 1}])
@example([{"a": 1}, {"a": True}, {"a": 1.0}])
@example([{"a": 1, "b": 2}, {"b": 2, "a": 1}])
@example([(), (), [1]])
@example([{}, {}, {"a": 1}])
@example([Pair(1, 2), (1, 2)])
@example([{True: 1}, {1: 1}])
@example(["\ud83d", "\ude00", "\ud83d\ude00", "😀"])
def test_what_comes_out_is_what_went_in(objects: list[Any]) -> None:
    shared = SharedSequence(iter(objects))
    length = len(objects)
    assert len(shared) == length
    assert same(list(shared), objects)
    assert same(list(reversed(shared)), objects[::-1])
    indices = random.Random(length).sample(range(-length, length), min(50, 2 * length))
    for index in indices:
        assert same(shared[index], objects[index])
        assert same(shared[np.int64(index)], objects[index])
    assert same(shared.__getitems__(indices), [objects[index] for index in indices])
    for beyond in (length, -length - 1):
        with pytest.raises(IndexError, match="index"):
            shared[beyond]


@given(alike(), st.lists(slices, min_size=1, max_size=3))
def test_slices_of_slices_are_those_of_a_list_and_copy_nothing(
    objects: list[Any], cuts: list[slice]
) -> None:
    view, sliced = SharedSequence(objects), objects
    block = view._block
    for cut in cuts:
        view, sliced = view[cut], sliced[cut]
        assert type(view) is SharedSequence
        assert view._block is block
        assert same(list(view), sliced)
        for index in range(-len(sliced), len(sliced)):
            assert same(view[index], sliced[index])
        assert same(list(pickle.loads(pickle.dumps(view))), sliced)
        with pytest.raises(IndexError, match="empty" if not sliced else f"{-len(sliced)} to"):
            view[len(sliced)]


@given(
    st.lists(st.sampled_from([0, 1, True, 1.0, "a", None, (1,)]), max_size=6),
    st.sampled_from([0, 1, "a", None, (1,), "absent"]),
)
def test_searching_and_comparing_are_those_of_a_list(objects: list[Any], sought: Any) -> None:
    shared = SharedSequence(objects)
    assert (sought in shared) == (sought in objects)
    assert shared.count(sought) == objects.count(sought)
    if sought in objects:
        assert shared.index(sought) == objects.index(sought)
    else:
        with pytest.raises(ValueError):  # noqa: PT011  # as a list does
            shared.index(sought)
    for other in (objects, tuple(objects), SharedSequence(objects), shared):
        assert shared == other
        assert other == shared
    for other in ([*objects, 1], [*objects[:-1], "other"], "abc", 5):
        assert (shared == other) == (objects == other)
        assert (shared != other) == (objects != other)


def test_it_has_no_hash_and_cannot_be_changed() -> None:
    shared = SharedSequence([[1, "a"], [2, "b"]])
    with pytest.raises(TypeError, match="unhashable"):
        hash(shared)
    with pytest.raises(TypeError):
        shared[0] = [3, "c"]  # type: ignore[index]
    with pytest.raises(TypeError, match="read-only"):
        shared._block.memory[0] = 0
    shared[0].append("changed")
    assert shared == [[1, "a"], [2, "b"]]


@pytest.mark.parametrize(
    ("objects", "bytes_each"),
    [
        ([i % 100 for i in range(50_000)], 1),
        ([-(2**15)] * 50_000, 2),
        ([2**31 - 1] * 50_000, 4),
        ([2**31] * 50_000, 8),
        ([0.5] * 50_000, 8),
        ([True, False] * 25_000, 1),
        (["abcd"] * 50_000, 8),
        ([{"a": 1, "b": 1000}] * 50_000, 3),
        ([(1, 1.0, "é")] * 50_000, 15),
        # The last value widens the column.
        ([1] * 49_999 + [1000], 2),
    ],
)
def test_columns_are_as_narrow_as_their_values(objects: list[Any], bytes_each: int) -> None:
    shared = SharedSequence(objects)
    assert same(list(shared), objects)
    assert len(objects) * bytes_each <= shared.nbytes <= len(objects) * bytes_each + 1000
    assert shared[::2].nbytes == shared.nbytes


@pytest.mark.parametrize("late", [[], ["misfit", None], [{"a": 1}]])
@pytest.mark.parametrize(
    "objects",
    [
        ["a" * 700_000, "", "b" * 2_500_000, "", ""],
        [{"a": f"{i:0100d}", "b": i, "c": [i]} for i in range(30_000)],
        [(0.5 * i, i % 2 == 0, -i) for i in range(300_000)],
        [tuple(range(64))] * 5,
        [list(range(65))] * 5,
    ],
)
def test_large_columns_and_wide_records(objects: list[Any], late: list[Any]) -> None:
    objects = objects + late
    shared = SharedSequence(objects)
    assert len(shared) == len(objects)
    assert all(map(same, shared, objects))
    assert same(shared[len(objects) - 1], objects[-1])


def test_a_generator_is_consumed_lazily() -> None:
    alive = most = 0

    class Large:
        def __init__(self) -> None:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

        def __reduce__(self) -> Any:
            return bytes, (bytes(self.size),)

    class Small(Large):
        size = 10

    Large.size = 100_000
    shared = SharedSequence(Large() for _ in range(200))
    assert shared[199] == bytes(100_000)
    assert most < 50
    most = 0
    SharedSequence(Small() for _ in range(10_000))
    assert most < 2100


def test_its_repr_is_short() -> None:
    assert repr(SharedSequence(range(100_000))) == (
        "<SharedSequence of 100,000 objects, 0.4 MB shared>"
    )


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
@pytest.mark.parametrize("view", [slice(None), slice(30, 5, -3)])
def test_copies_share_the_block(copied: Any, view: slice) -> None:
    shared = SharedSequence(EXAMPLES)[view]
    again = copied(shared)
    assert again == EXAMPLES[view]
    assert again._block is shared._block
    assert sys.platform != "linux" or len(pickle.dumps(shared)) < 500


def read_from_thread(shared: SharedSequence[Any], seed: int, failures: list[Any]) -> None:
    order = list(range(len(shared)))
    random.Random(seed).shuffle(order)
    for index in order * 20:
        if not same(shared[index], EXAMPLES[index]):
            failures.append(index)


def test_threads_read_at_once() -> None:
    shared, failures = SharedSequence(EXAMPLES), []
    threads = [
        threading.Thread(target=read_from_thread, args=(shared, seed, failures))
        for seed in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures


# Other processes.


def identity(shared: SharedSequence[Any]) -> Any:
    """The identity of its memory, the same in every process."""
    if shared._block._descriptor is None:
        return None
    status = os.fstat(shared._block._descriptor)
    return status.st_dev, status.st_ino


def answer(shared: Any, replies: Any) -> None:
    replies.put((list(shared), type(shared).__name__, identity(shared), os.getpid()))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_process_maps_the_block_even_if_its_parent_drops_it(method: str) -> None:
    context = multiprocessing.get_context(method)
    replies = context.SimpleQueue()
    mixed = [*EXAMPLES, None, Pair(1, "x")]
    shared = SharedSequence(mixed)[::-1]
    memory = identity(shared)
    assert sys.platform != "linux" or memory is not None
    process = context.Process(target=answer, args=(shared, replies))
    process.start()
    del shared
    gc.collect()
    objects, name, memory_there, pid = replies.get()
    process.join(60)
    assert same(objects, mixed[::-1])
    assert (name, memory_there) == ("SharedSequence", memory)
    assert pid != os.getpid()


class Inside(Dataset[Any]):
    """Holds a view of a SharedSequence, as a dataset holds its list of samples."""

    def __init__(self, samples: Any) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        return {**self.samples[index], "type": type(self.samples).__name__}


def as_list(samples: list[Any]) -> list[Any]:
    return samples


@pytest.mark.parametrize(
    "method", ["fork", pytest.param("spawn", marks=pytest.mark.slow), "forkserver"]
)
@pytest.mark.parametrize("loader_type", [DataLoader, ResumableDataLoader])
def test_loaders_workers_read_it(loader_type: Any, method: str) -> None:
    shared = SharedSequence(EXAMPLES)
    load = functools.partial(
        loader_type, batch_size=4, collate_fn=as_list, num_workers=2, multiprocessing_context=method
    )
    batches = list(load(Inside(shared[5:25])))
    found = [sample for batch in batches for sample in batch]
    assert same(found, [{**each, "type": "SharedSequence"} for each in EXAMPLES[5:25]])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_it_is_a_dataset_that_resumes(num_workers: int) -> None:
    shared, plain = SharedSequence(EXAMPLES), EXAMPLES

    def load(dataset: Any) -> ResumableDataLoader[Any]:
        return ResumableDataLoader(
            dataset, 8, shuffle=True, seed=3, num_workers=num_workers, collate_fn=as_list
        )

    expected = list(load(plain))
    loader = load(shared)
    batches = iter(loader)
    first = [next(batches), next(batches)]
    resumed = load(shared)
    resumed.load_state_dict(loader.state_dict())
    assert same(first + list(resumed), expected)
    subset = list(load(Subset(shared, list(range(30, 10, -1)))))
    assert same(subset, list(load(Subset(plain, list(range(30, 10, -1))))))


MAKER = """
import pickle, sys
from dataporter import SharedSequence
shared = SharedSequence({"n": n} for n in range(1000))
sys.stdout.buffer.write(pickle.dumps(shared[::2]).hex().encode() + b"\\n")
sys.stdout.buffer.flush()
sys.stdin.read()
"""

PASSER = """
import pickle, sys
passed = pickle.loads(bytes.fromhex(sys.stdin.readline()))
print(pickle.dumps(passed).hex())
"""

EVERY_OTHER = [{"n": n} for n in range(0, 1000, 2)]


@pytest.fixture
def maker() -> Iterator[Program]:
    process = Program(exec, MAKER, {})
    yield process
    process.kill()
    process.communicate()


@on_linux
def test_a_pickle_outlives_its_maker_where_another_process_has_the_block(
    maker: Program,
) -> None:
    first = bytes.fromhex(maker.stdout.readline().decode())
    shared = pickle.loads(first)
    assert shared == EVERY_OTHER
    maker.kill()
    maker.wait(30)
    # This process knows the block, although the process of the pickle is gone.
    assert pickle.loads(first)._block is shared._block
    passer = Program(exec, PASSER, {})
    out, _ = passer.communicate(pickle.dumps(shared).hex().encode() + b"\n")
    assert passer.returncode == 0
    del shared
    gc.collect()
    # No process that the pickles name has it any more.
    for gone in (first, bytes.fromhex(out.decode())):
        with pytest.raises(ConfigurationError, match=r"gone or out of reach.*pickle list\("):
            pickle.loads(gone)


@on_linux
def test_a_pickle_outlives_its_pickler_where_the_maker_has_the_block() -> None:
    shared = SharedSequence(EVERY_OTHER)
    passer = Program(exec, PASSER, {})
    out, _ = passer.communicate(pickle.dumps(shared).hex().encode() + b"\n")
    code = "import pickle, sys; print(list(pickle.loads(bytes.fromhex(sys.stdin.read()))))"
    reader = Program(exec, code, {})
    read, _ = reader.communicate(out)
    assert read.decode().strip() == str(EVERY_OTHER)


def reply_with(replies: Any, shared: Any) -> None:
    replies.put(shared[1:])


@on_linux
def test_a_worker_sends_it_back() -> None:
    shared = SharedSequence(EXAMPLES)
    context = multiprocessing.get_context("fork")
    replies = context.SimpleQueue()
    process = context.Process(target=reply_with, args=(replies, shared))
    process.start()
    process.join(60)
    # The worker that the pickle names has ended.
    returned = replies.get()
    assert returned._block is shared._block
    assert returned == EXAMPLES[1:]


@on_linux
def test_another_file_under_the_same_descriptor_is_not_mistaken_for_it(tmp_path: Path) -> None:
    shared = SharedSequence(EXAMPLES)
    handle = shared._block.handle()
    descriptor = os.open(tmp_path / "other", os.O_CREAT | os.O_RDWR)
    os.ftruncate(descriptor, handle.size)
    reading, writing = os.pipe()
    try:
        token = bytes(16)
        own = Handle(token, handle.size, ((os.getpid(), descriptor),))
        # The size and the token identify the block.
        assert bytes(find_block(own).memory[:16]) == token
        os.pwrite(descriptor, b"x", 0)
        gc.collect()
        for holder in ((os.getpid(), descriptor), (os.getpid(), reading), (2**22 + 1, 0)):
            with pytest.raises(ConfigurationError, match="gone or out of reach"):
                find_block(Handle(token, handle.size, (holder,)))
        longer = Handle(b"x" + token[1:], handle.size + 1, ((os.getpid(), descriptor),))
        with pytest.raises(ConfigurationError, match="gone or out of reach"):
            find_block(longer)
    finally:
        for each in (descriptor, reading, writing):
            os.close(each)


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def mappings() -> int:
    return Path("/proc/self/maps").read_text().count("dataporter")


@on_linux
def test_descriptors_and_mappings_go_with_the_sequence(maker: Program) -> None:
    before, mapped = descriptors(), mappings()
    for n in range(1000):
        SharedSequence([n, "a"])
    pickled = bytes.fromhex(maker.stdout.readline().decode())
    for _ in range(1000):
        assert len(pickle.loads(pickled)) == 500
    shared = pickle.loads(pickled)
    held = descriptors()
    assert held > before
    many = [pickle.loads(pickled) for _ in range(1000)] + [shared[n:] for n in range(1000)]
    assert descriptors() == held
    # A reader keeps working, and the descriptor is closed.
    left = iter(shared)
    del many, shared
    assert descriptors() < held
    assert list(left) == EVERY_OTHER
    del left
    assert (descriptors(), mappings()) == (before, mapped)
    with pytest.raises(ConfigurationError):
        SharedSequence([1, 2, Unwilling()])
    assert descriptors() == before


@on_linux
def test_a_killed_process_leaves_nothing_behind() -> None:
    def left() -> set[str]:
        # Without joblib's semaphores, which other tests create meanwhile.
        shared = {name for name in os.listdir("/dev/shm") if not name.startswith("sem.loky-")}
        return shared | {name for name in os.listdir("/tmp") if name.startswith("dataporter")}

    before = left()
    process = Program(exec, MAKER, {})
    process.stdout.readline()
    during = left()
    process.kill()
    process.communicate()
    assert during <= before | left()
    assert left() <= before


@on_linux
def test_a_handle_carries_the_bytes_where_descriptors_cannot_be_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shared_block, "_HAS_DESCRIPTORS", False)
    shared = SharedSequence(EXAMPLES)
    pickled = pickle.dumps(shared[3:])
    assert pickle.loads(pickled)._block is shared._block
    with pytest.raises(TypeError, match="read-only"):
        shared._block.memory[0] = 0
    block = shared._block
    del shared
    gc.collect()
    monkeypatch.setattr(shared_block, "_BLOCKS", {})
    again = pickle.loads(pickled)
    assert again._block is not block
    assert again == EXAMPLES[3:]
    with pytest.raises(TypeError, match="read-only"):
        again._block.memory[0] = 0


FAMILY = """
import os, random, sys
from torch.utils.data import DataLoader
from dataporter import ResumableDataLoader, SharedSequence

def family():
    pids = [os.getpid(), *open(f"/proc/self/task/{os.getpid()}/children").read().split()]
    lines = (open(f"/proc/{pid}/smaps_rollup").read().splitlines() for pid in pids)
    return sum(int(line.split()[1]) for all in lines for line in all if line.startswith("Pss:"))

def looked_at(samples):
    return sum(len(sample["path"]) + sample["label"] + sample["at"] for sample in samples)

what, which = sys.argv[1:]
samples = ({"path": f"images/{i:08d}.jpg", "label": i, "at": i / 3} for i in range(200_000))
dataset = {"list": list, "shared": SharedSequence}[what](samples)
loader_type = {"torch": DataLoader, "ours": ResumableDataLoader}[which]
loader = loader_type(dataset, 250, shuffle=True, num_workers=2, collate_fn=looked_at,
    multiprocessing_context="fork")
batches = iter(loader)
next(batches)
start = family()
for _ in range(len(loader) - 20):
    next(batches)
print((family() - start) // 1024)
"""


@on_linux
@pytest.mark.slow
@pytest.mark.parametrize("which", ["torch", "ours"])
def test_processes_do_not_grow_over_an_epoch_as_with_a_list(which: str) -> None:
    def growth(what: str) -> int:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", FAMILY, what, which]
        ran = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=100, check=True
        )
        return int(ran.stdout)

    # MB; the copies of 200,000 dicts by two workers, and noise.
    assert growth("shared") < 12
    assert growth("list") > 40


# Errors.


@pytest.mark.parametrize("before", [0, 1, 5000])
@pytest.mark.parametrize(
    "wrap", [lambda it: it, lambda it: {"a": it}, lambda it: (it, 1), lambda it: [[it]]]
)
def test_an_object_that_cannot_be_pickled_is_named_by_its_index(before: int, wrap: Any) -> None:
    objects = [wrap(n) for n in range(before)] + [wrap(Unwilling()), wrap(1)]
    with pytest.raises(ConfigurationError, match=rf"object {before} cannot .*not me.*instead"):
        SharedSequence(iter(objects))


def test_an_object_that_cannot_be_unpickled_is_named_when_it_must_be() -> None:
    objects = [{"a": n} for n in range(3000)] + [{"a": OneWay()}] * 2000 + [{"b": 1}]
    with pytest.raises(ConfigurationError, match=r"object 3000 cannot .*math domain"):
        SharedSequence(objects)


@pytest.mark.parametrize("nothing", [5, None, object()])
def test_an_argument_that_is_not_iterable_is_refused(nothing: Any) -> None:
    with pytest.raises(ConfigurationError, match="not iterable: pass a list"):
        SharedSequence(nothing)


def test_an_error_of_the_generator_is_raised_unchanged() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        SharedSequence(failing())


@pytest.mark.parametrize("index", ["a", 1.0, None, [1]])
def test_wrong_types_of_index_are_named(index: Any) -> None:
    with pytest.raises(TypeError, match="indexed by integers and slices, not by"):
        SharedSequence([1, 2])[index]


def test_an_index_out_of_range_says_what_is_in_range() -> None:
    shared = SharedSequence(range(1500))
    with pytest.raises(IndexError, match=r"index 1500 is out of range .* of 1,500 .*-1500 to 1499"):
        shared[1500]
    with pytest.raises(IndexError, match="index 3: this SharedSequence is empty"):
        SharedSequence([])[3]


def test_a_block_is_not_half_made() -> None:
    def fail(_: Any) -> None:
        raise OSError("full")

    before = descriptors() if sys.platform == "linux" else 0
    with pytest.raises(OSError, match="full"):
        create_block(100, fail)
    assert sys.platform != "linux" or descriptors() == before
