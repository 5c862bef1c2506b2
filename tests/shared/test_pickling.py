"""Pickling: any view takes its own bytes, and arrives as it was."""

from __future__ import annotations

import copyreg
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from budgets import cases
from hypothesis import given, settings
from hypothesis import strategies as st

from dataporter import SharedSequence
from dataporter.engines.messages import Failure, Task, unpacked
from dataporter.engines.packing import Packer, packed_whole, unpack
from dataporter.schedule.request import Request
from dataporter.shared.pickling import dumps

# Bytes of a pickle that are not values: the names of types and functions, sizes and strides.
OVERHEAD = 2000

DTYPES = [
    *(torch.bool, torch.uint8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e5m2),
    *(torch.complex32, torch.complex64, torch.complex128),
]


class Labelled(torch.Tensor):
    """A subclass, whose objects may have attributes."""


def quantized(tensor: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(tensor.float(), 0.5, 3, torch.qint8)


def labelled(tensor: torch.Tensor) -> torch.Tensor:
    made = tensor.as_subclass(Labelled)
    made.label = "a view"  # type: ignore[attr-defined]
    return made


def has_gradients(tensor: torch.Tensor) -> bool:
    # torch cannot read a pickle of rarer dtypes with gradients, whoever wrote it.
    return tensor.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.complex64)


FORMS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "as it is": lambda tensor: tensor,
    "conjugated": lambda tensor: tensor.conj() if tensor.dtype is torch.complex64 else tensor,
    "negative": lambda tensor: tensor.conj().imag if tensor.dtype is torch.complex64 else tensor,
    "subclass": labelled,
    "gradients": lambda tensor: tensor.requires_grad_(has_gradients(tensor)),
    "parameter": lambda tensor: torch.nn.Parameter(tensor, has_gradients(tensor)),
}

# Each indexes a tensor of three dimensions.
STEPS = st.integers(1, 5)
SLICES = st.builds(slice, st.integers(0, 3), st.integers(4, 9), STEPS)
KEYS = st.tuples(*(st.one_of(SLICES, st.integers(0, 3)) for _ in range(3)))


def values_of(dtype: torch.dtype) -> torch.Tensor:
    """20 times 30 times 10 values, at most of which a view has 192."""
    raw = torch.arange(6000 * dtype.itemsize).remainder(2).to(torch.uint8)
    return raw.view(dtype).reshape(20, 30, 10)


def view(dtype: torch.dtype, key: Any, axes: list[int], way: int, form: str) -> torch.Tensor:
    part = values_of(dtype).permute(axes)[key]
    if way == 1:
        part = part.expand(3, *part.shape)
    elif way == 2 and part.ndim and part.shape[-1] > 1:
        part = part.unfold(-1, 2, 1)
    elif way == 3:
        part = part[..., None]
    return FORMS[form](part)


VIEWS = st.builds(
    view,
    st.sampled_from(DTYPES),
    KEYS,
    st.permutations([0, 1, 2]),
    st.integers(0, 3),
    st.sampled_from(sorted(FORMS)),
)


def as_bytes(tensor: torch.Tensor) -> bytes:
    plain = tensor.detach().as_subclass(torch.Tensor)
    if plain.is_quantized:
        plain = plain.int_repr()
    raw = plain.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    return raw.reshape(-1).view(torch.uint8).numpy().tobytes() if raw.numel() else b""


def described(tensor: torch.Tensor) -> Any:
    return (
        type(tensor),
        tensor.dtype,
        tensor.shape,
        tensor.requires_grad,
        tensor.is_conj(),
        tensor.is_neg(),
        tensor.__dict__,
        as_bytes(tensor),
    )


def order(tensor: torch.Tensor) -> list[int]:
    """The axes along which there are several values in memory, the innermost first."""
    axes = [axis for axis, size in enumerate(tensor.shape) if size > 1 and tensor.stride(axis)]
    return sorted(axes, key=lambda axis: (tensor.stride(axis), -axis))


@settings(max_examples=cases(300))
@given(VIEWS)
@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_any_view_takes_its_own_bytes_and_arrives_as_it_was(tensor: torch.Tensor) -> None:
    pickled = dumps({"a": [tensor]})
    assert len(pickled) <= tensor.nbytes + OVERHEAD
    found = pickle.loads(pickled)["a"][0]
    assert described(found) == described(tensor)
    assert order(found) == order(tensor), "only gaps may be missing"


@settings(max_examples=cases(200))
@given(VIEWS)
@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_so_do_views_in_a_batch_which_is_pickled_in_part(tensor: torch.Tensor) -> None:
    packer = Packer({"a": tensor, "b": {1}}, None)
    assert len(packer.message) + packer.size <= 2 * tensor.nbytes + OVERHEAD
    whole = packed_whole({"a": tensor})
    assert len(whole) <= tensor.nbytes + OVERHEAD
    kept = (type(tensor), tensor.dtype, tensor.shape, tensor.requires_grad, as_bytes(tensor))
    found = unpack(whole, None)["a"]
    assert (type(found), found.dtype, found.shape, found.requires_grad, as_bytes(found)) == kept


BIG = torch.zeros(400, 1000)
QUANTIZED = {
    "quantized": lambda: quantized(BIG)[3],
    "quantized per channel": lambda: torch.quantize_per_channel(
        BIG[:4], torch.ones(4), torch.zeros(4), 0, torch.qint8
    ),
}
ODD = {
    **(QUANTIZED if hasattr(torch, "quantize_per_tensor") else {}),  # which torch will remove
    "sparse": lambda: BIG[:1].to_sparse(),
    "sparse, of views": lambda: torch.sparse_coo_tensor(
        torch.arange(10000).reshape(1, -1)[:, :5], BIG[0, :5], (10000,)
    ),
    "sparse rows": lambda: BIG[:2].to_sparse_csr(),
    "nested": lambda: torch.nested.nested_tensor([BIG[0], BIG[1, :3]]),
    "meta": lambda: BIG.to("meta")[3],
    "no values": lambda: BIG[:, :0],
    "a scalar": lambda: BIG[7, 7],
    "an array": lambda: BIG.numpy()[:, 3],
    "an array's subclass": lambda: BIG.numpy().view(np.matrix)[3:5, ::2],
    "an array of objects": lambda: np.array([BIG[0], None], dtype=object),
}


@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
@pytest.mark.filterwarnings("ignore")
def test_odd_values_take_their_own_bytes_as_well(make: Callable[[], Any]) -> None:
    value = make()
    pickled = dumps(value)
    assert len(pickled) <= 8200 + OVERHEAD
    found = pickle.loads(pickled)
    assert type(found) is type(value)
    if isinstance(value, torch.Tensor):
        assert (found.layout, found.dtype, found.device) == (
            value.layout,
            value.dtype,
            value.device,
        )
    # torch's own pickle of a compact copy is the judge of the values.
    assert repr(found) == repr(pickle.loads(pickle.dumps(value)))


def test_what_was_read_can_be_resized_and_written_to() -> None:
    found = pickle.loads(dumps(BIG[3]))
    assert found.resize_(2000).fill_(1).sum() == 2000
    assert BIG.sum() == 0


def test_a_type_that_has_its_own_way_of_being_pickled_keeps_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(copyreg.dispatch_table, Labelled, lambda value: (str, ("mine",)))
    assert pickle.loads(dumps(labelled(BIG[0]))) == "mine"


# ---- wherever tensors are pickled


def test_a_sequence_of_rows_takes_the_rows_bytes() -> None:
    assert SharedSequence(BIG).nbytes < BIG.nbytes + 400 * OVERHEAD
    records = [{"id": n, "row": row, "next": (row[:2], n)} for n, row in enumerate(BIG)]
    shared = SharedSequence(records)
    assert shared.nbytes < BIG.nbytes + 400 * OVERHEAD
    assert torch.equal(shared[7]["row"], BIG[7])


def test_an_exception_takes_the_bytes_of_the_view_that_it_holds() -> None:
    error = ValueError("odd row", BIG[3])
    error.also = BIG[:, 5]  # type: ignore[attr-defined]
    failure = Failure.from_exception(error)
    # The texts of the view are in it as well.
    assert len(pickle.dumps(failure)) < BIG.nbytes / 20
    found = failure.rebuilt()
    assert torch.equal(found.args[1], BIG[3])
    assert found.also.shape == (400,)  # type: ignore[attr-defined]


def test_a_request_takes_the_bytes_of_indices_that_are_views() -> None:
    """Iterating over ``torch.randperm(n)``, as custom samplers do, yields views of it."""
    indices = list(torch.randperm(100_000))[:64]
    request = Request(0, 0, 0, np.arange(64), indices)
    message = Task(0, request, [], [], []).packed()
    assert len(message) < 64 * 300
    task = unpacked(message)
    assert isinstance(task, Task)
    assert list(task.request.indices) == indices  # type: ignore[attr-defined]
