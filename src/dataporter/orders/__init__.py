"""Orders: which sample comes at which position of an epoch."""

from dataporter.orders.blocks import BlockShuffledOrder
from dataporter.orders.order import Order
from dataporter.orders.sequential import SequentialOrder
from dataporter.orders.shuffled import ShuffledOrder
from dataporter.orders.torch_order import TorchOrder
from dataporter.orders.weighted import WeightedOrder, balanced

__all__ = [
    "BlockShuffledOrder",
    "Order",
    "SequentialOrder",
    "ShuffledOrder",
    "TorchOrder",
    "WeightedOrder",
    "balanced",
]
