"""SharedSequence in several processes: all map one block of memory, and it ends with them."""

from __future__ import annotations

import functools
import gc
import multiprocessing
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from example_records import EXAMPLES, Pair, Unwilling, descriptors, on_linux, same
from programs import Program
from torch.utils.data import DataLoader, Dataset, Subset

from dataporter import ConfigurationError, ResumableDataLoader, SharedSequence
from dataporter.shared import block as shared_block
from dataporter.shared.block import Handle, find_block

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
    """It has nothing that has a name outside of it, so there is nothing to be left."""
    process = Program(exec, MAKER, {})
    process.stdout.readline()
    open_files = [os.readlink(path) for path in Path(f"/proc/{process.pid}/fd").iterdir()]
    mapped = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
    process.kill()
    process.communicate()
    held = [*open_files, *(line.split(maxsplit=5)[-1] for line in mapped)]
    assert any("memfd:dataporter" in name for name in held)
    folders = ("/dev/shm/", f"{tempfile.gettempdir()}/dataporter")
    assert [name for name in held if name.startswith(folders) and Path(name).exists()] == []


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
    sum(len(sample["path"]) + sample["label"] + sample["at"] for sample in samples)
    return os.getpid()

what, which = sys.argv[1:]
samples = ({"path": f"images/{i:08d}.jpg", "label": i, "at": i / 3} for i in range(200_000))
dataset = {"list": list, "shared": SharedSequence}[what](samples)
loader_type = {"torch": DataLoader, "ours": ResumableDataLoader}[which]
loader = loader_type(dataset, 250, shuffle=True, num_workers=2, collate_fn=looked_at,
    multiprocessing_context="fork")
batches = iter(loader)
workers = set()
while len(workers) < 2:  # a worker that starts late copies some 8 MB of its parent then
    workers.add(next(batches))
start = family()
for _ in range(600):
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
