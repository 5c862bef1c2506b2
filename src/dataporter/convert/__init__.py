"""Conversion: batches in narrower dtypes, checked, and widened again on the device (C11, C12)."""

from dataporter.convert.casting import Empty, OnLoss, new
from dataporter.convert.conversion import Conversion, Converted, Originals
from dataporter.convert.converter import (
    KeyBasedDtypeConverter,
    Rules,
    converter_for,
    leaves_of,
)

__all__ = [
    "Conversion",
    "Converted",
    "Empty",
    "KeyBasedDtypeConverter",
    "OnLoss",
    "Originals",
    "Rules",
    "converter_for",
    "leaves_of",
    "new",
]
