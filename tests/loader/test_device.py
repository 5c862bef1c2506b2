"""DevicePrefetcher: the same batches on the device; what is ahead does not count as delivered."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from subjects import Indices, digest, ids
from worker_processes import Filled, inline

from dataporter import (
    ConfigurationError,
    DevicePrefetcher,
    KeyBasedDtypeConverter,
    ResumableDataLoader,
)
from dataporter.engines import locking
from dataporter.loader.cuda_copies import CudaPageLock

Pair = namedtuple("Pair", ["one", "two"])
# A device that every torch has: it takes the same way as an accelerator, without a stream.
ELSEWHERE = "meta"
# `python -m benchmarks.gpu` runs these where there is a GPU.
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", ELSEWHERE, pytest.param("cuda", marks=needs_cuda)]


@dataclass
class Record:
    image: Any
    name: str


def loader(**arguments: Any) -> ResumableDataLoader[Any]:
    return ResumableDataLoader(Indices(10), 2, shuffle=True, seed=3, **arguments)


@pytest.mark.parametrize("workers", [0, 2])
def test_on_the_cpu_batches_pass_as_they_are(workers: int) -> None:
    expected = [ids(batch) for batch in loader()]
    assert [
        ids(batch) for batch in DevicePrefetcher(loader(num_workers=workers), "cpu")
    ] == expected
    assert len(DevicePrefetcher(loader(), "cpu")) == 5


def test_tensors_move_in_containers_of_the_same_types() -> None:
    batch = {
        "list": [torch.ones(2), "text", None],
        "pair": Pair(torch.ones(1), 2),
        "record": Record(torch.ones(3), "name"),
        "ordered": OrderedDict(a=(torch.ones(1),)),
    }
    (moved,) = DevicePrefetcher([batch], ELSEWHERE)
    assert moved["list"][0].device.type == ELSEWHERE
    assert moved["list"][1:] == ["text", None]
    assert type(moved["pair"]) is Pair
    assert moved["pair"].one.device.type == ELSEWHERE
    assert moved["record"].image.device.type == ELSEWHERE
    assert moved["record"].name == "name"
    assert type(moved["ordered"]) is OrderedDict
    assert moved["ordered"]["a"][0].device.type == ELSEWHERE
    assert batch["list"][0].device.type == "cpu"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("stop", range(6))
def test_the_state_is_after_the_batch_that_came_out(device: str, stop: int) -> None:
    alone, ahead = loader(), loader()
    prefetcher = DevicePrefetcher(ahead, device)
    batches, reference = iter(prefetcher), iter(alone)
    assert prefetcher.state_dict() == alone.state_dict()
    for _ in range(stop):
        next(batches), next(reference)
        assert prefetcher.state_dict() == alone.state_dict()
    resumed = loader()
    DevicePrefetcher(resumed, device).load_state_dict(prefetcher.state_dict())
    assert [ids(batch) for batch in resumed] == [ids(batch) for batch in reference]


@pytest.mark.parametrize("device", DEVICES)
def test_the_state_after_an_epoch_is_the_next_epochs(device: str) -> None:
    alone, ahead = loader(), loader()
    prefetcher = DevicePrefetcher(ahead, device)
    assert len(list(prefetcher)) == len(list(alone)) == 5
    assert prefetcher.state_dict() == alone.state_dict()
    assert len(list(prefetcher)) == 5
    list(alone)
    assert prefetcher.state_dict() == alone.state_dict()


@needs_cuda
def test_on_cuda_batches_arrive_equal_and_resume_exactly() -> None:
    pinned = loader(num_workers=2, pin_memory=True)
    expected = [ids(batch) for batch in loader()]
    prefetcher = DevicePrefetcher(pinned, "cuda")
    batches = iter(prefetcher)
    found = [next(batches) for _ in range(2)]
    assert all(batch.is_cuda for batch in found)
    resumed = loader()
    resumed.load_state_dict(prefetcher.state_dict())
    assert [ids(batch.cpu()) for batch in found] + [ids(b) for b in resumed] == expected


def keep_busy(times: int = 40) -> None:
    """Give the device work, before which the copies that follow cannot begin."""
    matrix = torch.ones(4096, 4096, device="cuda")
    for _ in range(times):
        matrix = torch.mm(matrix, matrix).mul_(1 / 4096)


@needs_cuda
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("workers", [1, 2])
def test_on_cuda_no_batch_is_overwritten_under_a_slow_stream(
    workers: int, persistent: bool
) -> None:
    reading = ResumableDataLoader(
        Filled(200), 4, shuffle=True, seed=5, num_workers=workers, persistent_workers=persistent
    )
    for _ in range(2):
        expected = inline(reading)
        found = []
        for batch in DevicePrefetcher(reading, "cuda"):
            found.append({**batch, "x": batch["x"].clone(), "n": batch["n"].clone()})
            if len(found) % 10 == 0:
                keep_busy()
        cpu = [{**one, "x": one["x"].cpu(), "n": one["n"].cpu()} for one in found]
        assert [digest(batch) for batch in cpu] == expected


@needs_cuda
def test_on_cuda_batches_that_are_dropped_at_once_spoil_no_later_one() -> None:
    """Their memory on the device is used again, but only in the order of its stream."""
    reading = ResumableDataLoader(Filled(200), 4, shuffle=True, seed=5, num_workers=2)
    expected = torch.stack([batch["x"].double().sum() for batch in _plain(reading)])
    sums = []
    for batch in DevicePrefetcher(reading, "cuda"):
        keep_busy(2)
        sums.append(batch["x"].double().sum())
        del batch
    assert torch.equal(torch.stack(sums).cpu(), expected)


def _plain(loader: ResumableDataLoader[Any]) -> ResumableDataLoader[Any]:
    return ResumableDataLoader(loader.dataset, loader.batch_size, shuffle=True, seed=loader.seed)


@needs_cuda
@pytest.mark.parametrize("arguments", [{}, {"num_workers": 2, "worker_kind": "thread"}])
def test_on_cuda_batches_that_are_in_no_slot_arrive_equal(arguments: dict[str, Any]) -> None:
    reading = ResumableDataLoader(Filled(40), 4, shuffle=True, seed=5, **arguments)
    found = [batch["x"].cpu() for batch in DevicePrefetcher(reading, "cuda")]
    expected = [batch["x"] for batch in _plain(reading)]
    assert all(map(torch.equal, found, expected))
    assert len(found) == len(expected)


@needs_cuda
def test_on_cuda_slots_are_page_locked_for_a_prefetcher_alone() -> None:
    reading = ResumableDataLoader(Filled(40), 4, num_workers=1, persistent_workers=True)
    with locking(CudaPageLock()):
        assert all(batch["x"].is_pinned() for batch in reading)
    assert not any(batch["x"].is_pinned() for batch in reading)


@needs_cuda
def test_on_cuda_memory_that_cannot_be_locked_leaves_no_error_behind() -> None:
    page_lock = CudaPageLock()
    with pytest.warns(RuntimeWarning, match="cannot be page-locked"):
        assert not page_lock.lock(1 << 12, 1 << 12)
    assert torch.ones(2, device="cuda").sum().item() == 2


ROWS = {
    "image": torch.randint(0, 256, (10, 3, 4, 4)).float().div(255),
    "label": torch.arange(10),
    "mask": torch.rand(10, 13) > 0.5,
}
RULES = {"image": "uint8:scale", "label": "uint8", "mask": "bits"}


def narrow(**arguments: Any) -> ResumableDataLoader[Any]:
    return ResumableDataLoader(ROWS, 4, shuffle=True, seed=3, converter=RULES, **arguments)


def test_batches_are_widened_on_the_device_and_the_narrow_ones_travel() -> None:
    reading = narrow()
    prefetcher = DevicePrefetcher(reading, ELSEWHERE, widen=reading.converter)
    batches = iter(prefetcher)
    batch = next(batches)
    for name, rows in ROWS.items():
        assert batch[name].device.type == ELSEWHERE
        assert batch[name].dtype is rows.dtype
        assert batch[name].shape == (4, *rows.shape[1:])
    # The one that is ahead was widened, too, and does not count.
    assert prefetcher.state_dict()["step"] == 1


def test_what_cannot_be_widened_is_raised_and_not_counted() -> None:
    other = KeyBasedDtypeConverter({"label": "uint8"})
    reading = narrow()
    prefetcher = DevicePrefetcher(reading, ELSEWHERE, widen=other)
    with pytest.raises(ConfigurationError, match="converted nothing there"):
        next(iter(prefetcher))
    assert prefetcher.state_dict()["step"] == 0


@needs_cuda
def test_on_cuda_widened_batches_are_the_plain_ones_bit_for_bit() -> None:
    reading = narrow(num_workers=2, pin_memory=True)
    widened = list(DevicePrefetcher(reading, "cuda", widen=reading.converter))
    plain = list(ResumableDataLoader(ROWS, 4, shuffle=True, seed=3))
    for wide, batch in zip(widened, plain, strict=True):
        for name in ROWS:
            assert wide[name].is_cuda
            assert wide[name].dtype is batch[name].dtype
            assert torch.equal(wide[name].cpu(), batch[name])


class Counting(ResumableDataLoader[Any]):
    def state_dict(self, **arguments: Any) -> dict[str, Any]:
        return {"loader": super().state_dict(**arguments), "seen": self.step}


def test_a_subclass_that_adds_to_the_state_is_asked_before_each_batch() -> None:
    prefetched = DevicePrefetcher(Counting(range(17), 4, seed=1), "meta")
    batches = iter(prefetched)
    for count in (1, 2):
        next(batches)
        state = prefetched.state_dict()
        assert (state["seen"], state["loader"]["step"]) == (count, count)
