"""DevicePrefetcher: the same batches on the device; what is ahead does not count as delivered."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from subjects import Indices, ids

from dataporter import (
    ConfigurationError,
    DevicePrefetcher,
    KeyBasedDtypeConverter,
    ResumableDataLoader,
)

Pair = namedtuple("Pair", ["one", "two"])
# A device that every torch has: it takes the same way as an accelerator, without a stream.
ELSEWHERE = "meta"


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


@pytest.mark.parametrize("device", ["cpu", ELSEWHERE])
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


@pytest.mark.parametrize("device", ["cpu", ELSEWHERE])
def test_the_state_after_an_epoch_is_the_next_epochs(device: str) -> None:
    alone, ahead = loader(), loader()
    prefetcher = DevicePrefetcher(ahead, device)
    assert len(list(prefetcher)) == len(list(alone)) == 5
    assert prefetcher.state_dict() == alone.state_dict()
    assert len(list(prefetcher)) == 5
    list(alone)
    assert prefetcher.state_dict() == alone.state_dict()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
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
