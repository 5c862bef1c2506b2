"""Tables of every feature, and their values in a form that can be compared."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import datasets as hf
import numpy as np
import torch
from datasets import (
    Array3D,
    ClassLabel,
    Dataset,
    Features,
    List,
    Value,
)
from PIL import Image as Pillow


def plain(value: Any) -> Any:
    """Tensors, arrays and images as Python objects; nan as a value that equals itself."""
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, Pillow.Image):
        pixels = np.asarray(value.convert("L") if value.mode == "1" else value)
        return (pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)).tolist()
    return "nan" if isinstance(value, float) and math.isnan(value) else value


def mixed(length: int = 23, first: int = 0) -> Dataset:
    features = Features(
        {
            "ids": List(Value("int32")),
            "mask": List(Value("int8"), length=4),
            "flag": Value("bool"),
            "text": Value("string"),
            "inner": {"x": Value("float32"), "name": {"y": Value("string")}},
            "grid": Array3D((1, 2, 2), "uint8"),
            "label": ClassLabel(names=["a", "b"]),
        }
    )
    numbers = range(first, first + length)
    return Dataset.from_dict(
        {
            "ids": [list(range(n, n + 5)) for n in numbers],
            "mask": [[n % 2, 1, 0, 1] for n in numbers],
            "flag": [n % 3 == 0 for n in numbers],
            "text": [f"text {n}" for n in numbers],
            "inner": [{"x": n / 2, "name": {"y": f"y{n}"}} for n in numbers],
            "grid": [[[[n % 256, 1], [2, 3]]] for n in numbers],
            "label": [n % 2 for n in numbers],
        },
        features=features,
    )


def saved(dataset: Dataset, path: Path, shards: int = 3) -> Dataset:
    dataset.save_to_disk(path, num_shards=shards)
    return hf.load_from_disk(path)


TEXTS = {"input_ids": [[5, 6, 7], [8], [9, 10]], "labels": [[1, 2, 3], [4], [5, 6]]}
