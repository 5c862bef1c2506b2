"""Images: Pillow's images as tensors (channels, height, width), and as floats from 0 to 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dataporter.convert import Conversion
from dataporter.convert.forms import Cast
from dataporter.errors import ConfigurationError
from dataporter.structure import Step

__all__ = ["Decoding", "float_of_images", "mode_checked", "scaled", "tensor_of"]

# The largest value of an image by dtype; other dtypes have no such limit.
_LEVELS = {torch.uint8: 255, torch.uint16: 65535}


@dataclass(frozen=True, slots=True)
class Decoding:
    """How images are decoded.

    Attributes:
        image_mode: a mode of Pillow, or None to keep each image's own.
        conversion: the rules, which decide whether an image becomes floats.
    """

    image_mode: str | None
    conversion: Conversion | None


def tensor_of(image: Any, mode: str | None) -> torch.Tensor:
    """A Pillow image as a tensor (channels, height, width); a grayscale image has one channel.

    Pixels of one bit become 0 and 255. Images with a palette keep their indices, which are the
    classes of a mask; ``mode="RGB"`` looks up the colours.
    """
    if mode is not None and image.mode != mode:
        image = image.convert(mode)
    elif image.mode == "1":
        image = image.convert("L")
    pixels = np.array(image)  # a copy: torch does not accept read-only arrays
    if not pixels.dtype.isnative:
        pixels = pixels.astype(pixels.dtype.newbyteorder("="))
    if pixels.ndim == 2:
        return torch.from_numpy(pixels[None])
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def scaled(image: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """One or several images as floats from 0 to 1: divided in float32, then rounded.

    Images without a largest value (floats, 32-bit whole numbers) are unchanged.
    """
    levels = _LEVELS.get(image.dtype)
    if levels is None:
        return image
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    return image.to(wide).div_(levels).to(dtype)


def float_of_images(conversion: Conversion | None, path: tuple[Step, ...]) -> torch.dtype | None:
    """The float to which the rules convert images at a path, or None."""
    rule = None if conversion is None else conversion.matcher.rule(path)
    if conversion is None or rule is None:
        return None
    form = conversion.forms[rule]
    return form.dtype if isinstance(form, Cast) and form.dtype.is_floating_point else None


def mode_checked(mode: str | None) -> str | None:
    """The mode, if Pillow converts to it.

    Raises:
        ConfigurationError: Pillow does not know the mode.
    """
    if mode is None:
        return None
    from PIL import Image

    try:
        Image.new("RGB", (1, 1)).convert(mode)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(
            f"image_mode={mode!r}: expected a mode that Pillow converts to, such as 'RGB', 'L' or "
            f"'RGBA' ({error})"
        ) from error
    return mode
