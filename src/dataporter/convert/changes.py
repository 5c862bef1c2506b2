"""Changes: which elements a cast has changed, and the nearest values of a dtype."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["PARTS", "changes_in", "exact_whole_numbers", "real", "saturated"]

# The dtypes of the real and imaginary parts.
PARTS = {
    torch.complex32: torch.float16,
    torch.complex64: torch.float32,
    torch.complex128: torch.float64,
}


def exact_whole_numbers(dtype: torch.dtype) -> tuple[int, int]:
    """The range of whole numbers that a dtype holds without a gap."""
    if dtype is torch.bool:
        return 0, 1
    if not dtype.is_floating_point:
        limits = torch.iinfo(dtype)
        return int(limits.min), int(limits.max)
    if dtype.itemsize == 1:
        return 1, 0
    most = int(2 / torch.finfo(dtype).eps)
    return -most, most


def changes_in(
    part: torch.Tensor, cast_part: torch.Tensor, rtol: float | None
) -> NDArray[np.bool_]:
    """Which elements differ from their cast by more than is allowed."""
    part = part.to(torch.uint8) if part.dtype is torch.bool else part
    source, dtype = part.dtype, cast_part.dtype
    if source.is_complex or dtype.is_complex:
        return _changed_complex(part, cast_part, rtol)
    if dtype is torch.bool:
        wide = _as_numbers(part)
        return np.asarray((wide != 0) & (wide != 1))
    if source.is_floating_point:
        wide = _as_numbers(part)
        if not dtype.is_floating_point:
            low, high = exact_whole_numbers(dtype)
            with np.errstate(invalid="ignore"):
                # float64 cannot hold the largest int64, but it holds the next number.
                held = (wide >= float(low)) & (wide < float(high + 1))
            return np.asarray(~(held & (np.trunc(wide) == wide)))
        return _changed_floats(wide, _as_numbers(cast_part), rtol)
    whole = part.numpy()
    if not dtype.is_floating_point:
        limits, (low, high) = np.iinfo(whole.dtype), exact_whole_numbers(dtype)
        low, high = max(low, int(limits.min)), min(high, int(limits.max))
        return np.asarray((whole < low) | (whole > high))
    return _changed_whole(whole, _as_numbers(cast_part), rtol)


def _as_numbers(part: torch.Tensor) -> NDArray[np.float64]:
    return part.to(torch.float64).numpy()


def _changed_floats(
    wide: NDArray[np.float64], narrow: NDArray[np.float64], rtol: float | None
) -> NDArray[np.bool_]:
    same = (wide == narrow) | (np.isnan(wide) & np.isnan(narrow))
    if rtol is None:
        return np.asarray(~same & ~(np.isfinite(wide) & np.isfinite(narrow)))
    with np.errstate(invalid="ignore", over="ignore"):
        near = np.abs(narrow - wide) <= rtol * np.abs(wide)
    # Every number is within any share of infinity, which some dtypes cast to their largest value.
    return np.asarray(~same & ~(near & np.isfinite(wide) & np.isfinite(narrow)))


def _changed_whole(
    whole: NDArray[Any], floats: NDArray[np.float64], rtol: float | None
) -> NDArray[np.bool_]:
    limits = np.iinfo(whole.dtype)
    # A float64 that is out of range or fractional cannot be compared as an integer.
    comparable = (floats >= float(limits.min)) & (floats < float(limits.max + 1))
    comparable &= np.trunc(floats) == floats
    same = comparable & (np.where(comparable, floats, 0).astype(whole.dtype) == whole)
    if not rtol:  # below, distances are float64, which rounds large numbers
        return np.asarray(~same)
    wide = whole.astype(np.float64)
    with np.errstate(invalid="ignore"):
        near = np.abs(floats - wide) <= rtol * np.abs(wide)
    return np.asarray(~same & ~(near & np.isfinite(floats)))


def _changed_complex(
    part: torch.Tensor, cast_part: torch.Tensor, rtol: float | None
) -> NDArray[np.bool_]:
    if not part.is_complex():
        return changes_in(part, real(cast_part), rtol)
    if not cast_part.is_complex():
        lost = _as_numbers(_imaginary(part)) != 0
        return np.asarray(lost | changes_in(real(part), cast_part, rtol))
    return np.asarray(
        changes_in(real(part), real(cast_part), rtol)
        | changes_in(_imaginary(part), _imaginary(cast_part), rtol)
    )


def real(numbers: torch.Tensor) -> torch.Tensor:
    """A view of the real parts."""
    return torch.view_as_real(numbers)[..., 0]


def _imaginary(numbers: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(numbers)[..., 1]


def saturated(part: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Each element as the nearest value of the dtype."""
    if part.is_complex() or dtype.is_complex:
        return _saturated_complex(part, dtype)
    if dtype is torch.bool:
        return torch.from_numpy(_as_numbers(part) >= 1)
    if dtype.is_floating_point:
        finite = torch.finfo(dtype)
        wide = part.to(torch.float64)
        return wide.clamp(finite.min, finite.max).where(wide.isfinite(), wide).to(dtype)
    low, high = exact_whole_numbers(dtype)
    if part.dtype.is_floating_point:
        wide = part.to(torch.float64).nan_to_num(0.0, float("inf"), float("-inf"))
        inside = (wide > float(low)) & (wide < float(high))
        whole = wide.where(inside, 0.0).numpy().astype(_numpy_dtype(dtype))
        whole[(wide <= float(low)).numpy()] = low
        whole[(wide >= float(high)).numpy()] = high
        return torch.from_numpy(whole)
    numbers = part.numpy()
    limits = np.iinfo(numbers.dtype)
    clipped = numbers.clip(max(low, int(limits.min)), min(high, int(limits.max)))
    return torch.from_numpy(clipped.astype(_numpy_dtype(dtype)))


def _saturated_complex(part: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    values = real(part) if part.is_complex() else part
    if not dtype.is_complex:
        return saturated(values, dtype)
    pieces = (values, _imaginary(part) if part.is_complex() else torch.zeros_like(values))
    return torch.view_as_complex(
        torch.stack([saturated(piece, PARTS[dtype]) for piece in pieces], -1)
    )


def _numpy_dtype(dtype: torch.dtype) -> Any:
    return torch.empty(0, dtype=dtype).numpy().dtype
