"""Casting: exact or an error, for every dtype and at every edge; and the nearest values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataporter.convert import casting
from dataporter.convert.casting import Loss, cast, narrowest, new

WHOLE = [
    getattr(torch, name)
    for name in ("uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64")
]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
TINY = [
    getattr(torch, name)
    for name in (
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    )
    if hasattr(torch, name)
]
COMPLEX = [torch.complex64, torch.complex128]
DTYPES = [torch.bool, *WHOLE, *FLOATS, *TINY, *COMPLEX]

dtypes = st.sampled_from(DTYPES)


def edges(dtype: torch.dtype) -> list[float]:
    if not dtype.is_floating_point:
        limits = torch.iinfo(dtype)
        return [limits.min, limits.min + 1, limits.max, limits.max - 1]
    limits = torch.finfo(dtype)
    near = [limits.max, limits.tiny, limits.tiny / 2, limits.eps, 1 + limits.eps]
    return [*near, *[-number for number in near]]


EDGES = [
    number
    for dtype in [*WHOLE, *FLOATS, *TINY]
    for edge in edges(dtype)
    for number in (edge, edge + 1, edge - 1, edge * 2)
] + [0.0, -0.0, 0.5, 1.0, 2.0, 2048, 2049, 2**24 + 1, 2**53 + 1, math.inf, -math.inf, math.nan]


@st.composite
def tensors(draw: st.DrawFn, among: list[torch.dtype] = DTYPES) -> torch.Tensor:
    """A tensor of any dtype, with the values at the edges of all dtypes that it can hold."""
    dtype = draw(st.sampled_from(among))
    numbers = draw(
        st.lists(st.sampled_from(EDGES) | st.integers(-300, 300) | st.floats(width=32), max_size=6)
    )
    if dtype is torch.bool:
        return torch.tensor([bool(number) for number in numbers], dtype=torch.bool)
    if dtype.is_complex:
        others = draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=6, max_size=6))
        parts = [complex(float(a), b) for a, b in zip(numbers, others)]
        return torch.tensor(parts, dtype=dtype)
    if not dtype.is_floating_point:
        limits = torch.iinfo(dtype)
        whole = [int(number) for number in numbers if math.isfinite(number)]
        held = [number for number in whole if limits.min <= number <= limits.max]
        like = torch.empty(0, dtype=dtype).numpy().dtype
        return torch.from_numpy(np.array(held, dtype=like))
    return torch.tensor([float(number) for number in numbers], dtype=torch.float64).to(dtype)


def values(tensor: torch.Tensor) -> list[Any]:
    """As Python's numbers, which compare exactly."""
    if tensor.dtype in TINY:
        tensor = tensor.to(torch.float32)
    return tensor.tolist()  # type: ignore[no-any-return]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, complex):
        other = complex(other)
        return same(one.real, other.real) and same(one.imag, other.imag)
    return bool(one == other) or (one != one and other != other)


def narrow(source: torch.Tensor, dtype: torch.dtype, **options: Any) -> torch.Tensor | Loss:
    return cast(source, dtype, **{"on_loss": "error", "rtol": None, "empty": new, **options})


@given(tensors(), dtypes)
def test_without_tolerance_a_cast_is_exact_or_names_the_first_value_that_is_not(
    source: torch.Tensor, dtype: torch.dtype
) -> None:
    """With rtol=0, compared one by one as Python's numbers."""
    result = narrow(source, dtype, rtol=0)
    became = values(source.to(dtype))
    kept = [same(was, now) for was, now in zip(values(source), became)]
    # torch does not define the cast of a float beyond the integers, which may be right.
    if isinstance(result, Loss):
        index = result.index[0]
        assert same(result.value, values(source)[index])
        assert all(kept[:index])
        limits = None if dtype.is_floating_point or dtype.is_complex else dtype
        if limits is None or limits is torch.bool:
            assert not kept[index]
    else:
        assert result.dtype is dtype
        assert all(kept)
        assert all(same(was, now) for was, now in zip(values(source), values(result)))
        assert all(same(a, b) for a, b in zip(values(result.to(source.dtype)), values(source)))


@given(tensors(FLOATS), st.sampled_from([*FLOATS, *TINY]))
def test_floats_may_be_rounded_but_finite_and_other_values_stay_so(
    source: torch.Tensor, dtype: torch.dtype
) -> None:
    result = narrow(source, dtype)
    pairs = zip(values(source), values(source.to(dtype)))
    broken = [(was, now) for was, now in pairs if math.isfinite(was) != math.isfinite(now)
              or (not math.isfinite(was) and not same(was, now))]  # fmt: skip
    assert isinstance(result, Loss) == bool(broken)
    if not isinstance(result, Loss):
        assert torch.equal(result.to(torch.float64).nan_to_num(7),
                           source.to(dtype).to(torch.float64).nan_to_num(7))  # fmt: skip


@given(tensors(FLOATS), st.sampled_from([*FLOATS, *TINY]), st.sampled_from([0.0, 1e-3, 0.5]))
def test_with_a_tolerance_no_value_is_further_away(
    source: torch.Tensor, dtype: torch.dtype, rtol: float
) -> None:
    pairs = list(zip(values(source), values(source.to(dtype))))
    far = [
        not same(was, now)
        and not (math.isfinite(was) and math.isfinite(now) and abs(now - was) <= rtol * abs(was))
        for was, now in pairs
    ]
    result = narrow(source, dtype, rtol=rtol)
    assert isinstance(result, Loss) == any(far)
    if isinstance(result, Loss):
        assert result.index == (far.index(True),)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", TINY)
def test_infinity_is_not_within_a_tolerance_of_a_finite_number(
    dtype: torch.dtype, sign: int
) -> None:
    result = narrow(torch.tensor([sign * math.inf]), dtype, rtol=0.5)
    if isinstance(result, torch.Tensor):
        assert values(result) == [sign * math.inf]


@pytest.mark.parametrize("rtol", [None, 0, 0.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("number", [2**53 + 1, 2**62 + 1, 2**63 - 1])
@pytest.mark.parametrize("source", [torch.int64, torch.uint64])
def test_a_whole_number_that_float64_rounds_as_well_is_not_held(
    source: torch.dtype, number: int, dtype: torch.dtype, rtol: float | None
) -> None:
    result = narrow(torch.tensor([number], dtype=source), dtype, rtol=rtol)
    assert isinstance(result, Loss)
    assert result.value == number


@given(tensors([torch.bool, *WHOLE]), st.sampled_from([*WHOLE, *FLOATS]))
def test_whole_numbers_are_exact_by_default(source: torch.Tensor, dtype: torch.dtype) -> None:
    """Compared with Python's integers, which have no limits."""
    if dtype.is_floating_point:
        kept = [same(was, now) for was, now in zip(values(source), values(source.to(dtype)))]
    else:
        limits = torch.iinfo(dtype)
        kept = [limits.min <= number <= limits.max for number in values(source)]
    result = narrow(source, dtype)
    assert isinstance(result, Loss) == (not all(kept))
    if not isinstance(result, Loss):
        assert values(result) == values(source)


@given(tensors(FLOATS), st.sampled_from([torch.bool, *WHOLE]))
def test_a_float_becomes_a_whole_number_only_if_it_is_one(
    source: torch.Tensor, dtype: torch.dtype
) -> None:
    low, high = (0, 1) if dtype is torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    whole = [number == number and low <= number <= high and number == int(number)
             if math.isfinite(number) else False for number in values(source)]  # fmt: skip
    result = narrow(source, dtype)
    assert isinstance(result, Loss) == (not all(whole))
    if not isinstance(result, Loss):
        assert values(result) == [int(number) for number in values(source)]


@given(tensors([torch.bool, *WHOLE, *FLOATS]), st.sampled_from([torch.bool, *WHOLE, *FLOATS]))
def test_saturating_takes_the_nearest_value(source: torch.Tensor, dtype: torch.dtype) -> None:
    result = narrow(source, dtype, on_loss="saturate")
    assert isinstance(result, torch.Tensor)
    for was, now in zip(values(source), values(result)):
        if dtype.is_floating_point:
            limits = torch.finfo(dtype)
            if math.isfinite(was) and abs(was) > limits.max:
                assert abs(now) == limits.max
                assert (now > 0) == (was > 0)
            else:
                assert same(now, torch.tensor([was], dtype=source.dtype).to(dtype).item())
        else:
            low, high = (
                (0, 1) if dtype is torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
            )
            if was != was:
                assert now == 0
            else:
                assert now == (int(was) if low <= was <= high else low if was < low else high)


@given(tensors(), dtypes)
def test_wrapping_is_what_torch_does(source: torch.Tensor, dtype: torch.dtype) -> None:
    if source.is_floating_point() or source.is_complex():
        # Beyond the whole numbers of the dtype, the result of torch changes from call to call.
        source = source.nan_to_num(0).clamp(0, 100) if source.dtype in FLOATS else source[:0]
    result = narrow(source, dtype, on_loss="wrap")
    assert isinstance(result, torch.Tensor)
    assert result.dtype is dtype
    assert str(values(result)) == str(values(source.to(dtype)))


@given(tensors([*WHOLE, *FLOATS]), dtypes)
def test_the_dtype_named_as_fitting_fits_and_no_smaller_one_of_its_kind(
    source: torch.Tensor, dtype: torch.dtype
) -> None:
    loss = narrow(source, dtype)
    if isinstance(loss, Loss) and loss.fits is not None:
        assert not isinstance(narrow(source, loss.fits), Loss)
        for smaller in (torch.uint8, torch.int16, torch.float16, torch.float32):
            alike = smaller.is_floating_point == loss.fits.is_floating_point
            if alike and smaller.itemsize < loss.fits.itemsize:
                assert isinstance(narrow(source, smaller), Loss)


@pytest.mark.skipif(not hasattr(torch, "float8_e8m0fnu"), reason="an older torch")
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
def test_a_dtype_without_a_zero_holds_none(dtype: torch.dtype) -> None:
    for values, index in (([1, 0], 1), ([0], 0)):
        result = narrow(torch.tensor(values).to(dtype), torch.float8_e8m0fnu, rtol=0)
        assert isinstance(result, Loss)
        assert result.index == (index,)


def test_a_tensor_that_fits_no_dtype_of_its_kind_names_none() -> None:
    assert narrowest(torch.tensor([1.5]), (torch.int32,), rtol=None) is None


# ---- blocks, layouts and indices


def test_the_index_is_found_in_every_block_and_order_of_dimensions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(casting, "BLOCK", 7)
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        for bad in range(24):
            source = torch.arange(24).view(2, 3, 4).permute(order)
            source = source.where(source != bad, 1000)
            strided = torch.empty_like(source).copy_(source)
            loss = narrow(strided, torch.uint8)
            assert isinstance(loss, Loss)
            assert strided[loss.index].item() == loss.value == 1000
    whole = narrow(torch.arange(24).view(2, 3, 4).transpose(0, 2), torch.uint8)
    assert isinstance(whole, torch.Tensor)
    assert torch.equal(whole.long(), torch.arange(24).view(2, 3, 4).transpose(0, 2))


@pytest.mark.parametrize(
    "source",
    [
        torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        torch.rand(6, 4).t(),
        torch.rand(4, 6)[:, ::2],
        torch.rand(3, 1).expand(3, 5),
        torch.tensor(0.5),
        torch.empty(0, 3),
        torch.rand(3, 4, dtype=torch.complex64).conj(),
        torch.rand(3, 2, dtype=torch.complex64).imag,
    ],
)
def test_layout_and_values_are_those_of_torchs_to(source: torch.Tensor) -> None:
    dtype = torch.complex128 if source.is_complex() else torch.bfloat16
    result, plain = narrow(source, dtype), source.to(dtype)
    assert isinstance(result, torch.Tensor)
    assert torch.equal(result, plain)
    if source.is_contiguous() or source.ndim == 4 or source.stride() == (1, 4):
        assert result.stride() == plain.stride()


def test_the_source_is_left_as_it_was() -> None:
    source = torch.tensor([1.0, 1e30, math.nan])
    before = source.clone()
    for on_loss in ("error", "saturate", "wrap"):
        narrow(source, torch.float16, on_loss=on_loss)
    assert torch.equal(source.nan_to_num(5), before.nan_to_num(5))


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_duplicate_entries_of_a_sparse_tensor_are_checked_as_their_sum() -> None:
    twice = torch.sparse_coo_tensor([[0, 0]], torch.tensor([200, 100]), (3,))
    result = narrow(twice, torch.uint8)
    assert isinstance(result, Loss)
    assert (result.value, result.fits) == (300, torch.int16)
    held = narrow(torch.sparse_coo_tensor([[0, 0]], torch.tensor([300, -100]), (3,)), torch.uint8)
    assert isinstance(held, torch.Tensor)
    assert held.to_dense().tolist() == [200, 0, 0]


@pytest.mark.parametrize("value", [3.0, 1e6])
@pytest.mark.parametrize(
    "made",
    [
        lambda dense: dense.to_sparse(),
        lambda dense: dense.to_sparse_csr(),
        lambda dense: torch.nn.Parameter(dense),
        lambda dense: dense.clone().requires_grad_(),
        lambda dense: torch.nested.nested_tensor([dense, dense]),
        lambda dense: torch.nested.nested_tensor([dense, dense], layout=torch.jagged),
    ],
    ids=["coo", "csr", "parameter", "grad", "nested", "jagged"],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:The PyTorch API of nested")
def test_tensors_of_other_kinds_are_checked_too(value: float, made: Any) -> None:
    source = made(torch.tensor([[0.0, value], [1.0, 0.0]]))
    result = narrow(source, torch.float16)
    if value > torch.finfo(torch.float16).max:
        assert isinstance(result, Loss)
        assert result.value == value
        assert result.fits is torch.bfloat16
    else:
        assert isinstance(result, torch.Tensor)
        assert result.dtype is torch.float16
        assert result.layout is source.layout
        assert result.is_nested == source.is_nested
