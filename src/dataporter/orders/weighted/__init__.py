"""Weighted orders: samples drawn by weight, with or without replacement."""

from dataporter.orders.weighted.balanced import balanced
from dataporter.orders.weighted.order import WeightedOrder

__all__ = ["WeightedOrder", "balanced"]
