"""Orders by name: the one place that knows which name means which order."""

from __future__ import annotations

import torch

from dataporter.checks import SEED_LIMIT
from dataporter.errors import ConfigurationError
from dataporter.orders.blocks import BlockShuffledOrder
from dataporter.orders.order import Order
from dataporter.orders.sequential import SequentialOrder
from dataporter.orders.shuffled import ShuffledOrder
from dataporter.orders.torch_order import TorchOrder

__all__ = [
    "generator_seed",
    "order_for",
]

_ORDERS: dict[str, Order] = {
    "shuffled": ShuffledOrder(),
    "blocks": BlockShuffledOrder(),
    "sequential": SequentialOrder(),
    "torch": TorchOrder(),
}


def order_for(order: str | Order | None, shuffle: bool | None) -> Order:
    """The order that ``order=`` and ``shuffle=`` ask for."""
    if order is None:
        return _ORDERS["shuffled" if shuffle else "sequential"]
    if isinstance(order, str):
        if order not in _ORDERS:
            raise ConfigurationError(
                f"order={order!r}: expected {', '.join(map(repr, _ORDERS))} or an Order object"
            )
        if shuffle is not None and bool(shuffle) != (order != "sequential"):
            raise ConfigurationError(
                f"order={order!r} and shuffle={shuffle} contradict each other: leave shuffle= out"
            )
        return _ORDERS[order]
    if isinstance(order, type) or not isinstance(order, Order):
        raise ConfigurationError(
            f"order={order!r}: an order object needs name, version, epoch_length() and indices(); "
            "see dataporter.Order"
        )
    return order


def generator_seed(order: Order | None, generator: torch.Generator | None) -> int | None:
    """The seed by which ``order="torch"`` follows a generator; None where one is drawn instead."""
    if not isinstance(order, TorchOrder) or generator is None:
        return None
    seed = generator.initial_seed()
    fresh = torch.Generator()
    fresh.manual_seed(seed)
    if not torch.equal(fresh.get_state(), generator.get_state()):
        raise ConfigurationError(
            f"order='torch' follows a generator from its seed on, but this one (seed {seed}) has "
            "been drawn from: call generator.manual_seed() before, or pass seed="
        )
    return seed % SEED_LIMIT
