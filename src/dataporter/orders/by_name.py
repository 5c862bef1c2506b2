"""Orders by name: the one module that knows which name means which order."""

from __future__ import annotations

import torch

from dataporter.checks import SEED_LIMIT, given
from dataporter.errors import ConfigurationError
from dataporter.orders.blocks import BlockShuffledOrder, blocks_named
from dataporter.orders.order import Order
from dataporter.orders.sequential import SequentialOrder
from dataporter.orders.shuffled import ShuffledOrder
from dataporter.orders.torch_order import TorchOrder

__all__ = [
    "bare_name",
    "generator_seed",
    "order_for",
    "order_named",
    "order_of_state",
    "sampler_name",
    "sampler_named",
]

# The name of a custom sampler in a state begins so.
_SAMPLER = "sampler "
# The attributes of samplers that are their settings, where they are plain values.
_SETTINGS = ("batch_size", "drop_last", "shuffle", "seed", "replacement", "num_samples")
_DEEPEST = 4
_ORDERS: dict[str, Order] = {
    "shuffled": ShuffledOrder(),
    "blocks": BlockShuffledOrder(),
    "sequential": SequentialOrder(),
    "torch": TorchOrder(),
}


def order_for(order: str | Order | None, shuffle: bool | None) -> Order:
    """The order that the arguments ``order=`` and ``shuffle=`` select.

    Raises:
        ConfigurationError: they are wrong or contradict each other.
    """
    if order is None:
        return _ORDERS["shuffled" if shuffle else "sequential"]
    if isinstance(order, str):
        if order not in _ORDERS:
            raise ConfigurationError(
                f"{given('order', order)}: expected {', '.join(map(repr, _ORDERS))} or an Order "
                "object"
            )
        if shuffle is not None and bool(shuffle) != (order != "sequential"):
            raise ConfigurationError(
                f"order={order!r} and shuffle={shuffle} contradict each other: leave shuffle= out"
            )
        return _ORDERS[order]
    if isinstance(order, type) or not isinstance(order, Order):
        raise ConfigurationError(
            f"{given('order', order)}: an order object needs name, version, epoch_length() and "
            "indices(); see dataporter.Order"
        )
    return order


def order_named(name: str) -> Order | None:
    """DataPorter's order with this name, as a state holds it; None for any other name."""
    known = {order.name: order for order in _ORDERS.values()}
    return known.get(name) or blocks_named(name)


def order_of_state(name: str, version: int) -> Order | None:
    """The order that a state's name and version identify.

    None for a custom order, and for an order or a version from a different release.
    """
    order = order_named(name)
    return order if order is not None and order.version == version else None


def sampler_name(sampler: object) -> str:
    """The name that a state gives the order of a custom sampler, with its settings."""
    return f"{_SAMPLER}{_described(sampler, _DEEPEST)}"


def sampler_named(name: str) -> str | None:
    """The custom sampler with this name in a state; None for the name of an order."""
    return name.removeprefix(_SAMPLER) if name.startswith(_SAMPLER) else None


def bare_name(name: str) -> str:
    """The name of a custom sampler without its settings, as states of schema 1 have it."""
    return name.split("(", 1)[0] if name.startswith(_SAMPLER) else name


def _described(sampler: object, depth: int) -> str:
    attributes = getattr(sampler, "__dict__", {})
    settings = [
        f"{name}={value!r}"
        for name in _SETTINGS
        if type(value := attributes.get(name)) in (bool, int, float, str)
        # DistributedSampler's follows from the length of the dataset.
        and not (name == "num_samples" and "num_replicas" in attributes)
    ]
    inner = attributes.get("sampler")
    if depth and hasattr(type(inner), "__iter__"):
        settings.append(f"sampler={_described(inner, depth - 1)}")
    return type(sampler).__name__ + (f"({', '.join(settings)})" if settings else "")


def generator_seed(order: Order | None, generator: torch.Generator | None) -> int | None:
    """The seed that ``order="torch"`` takes from ``generator=``; None if the loader draws one."""
    if not isinstance(order, TorchOrder) or generator is None:
        return None
    seed = generator.initial_seed()
    fresh = torch.Generator()
    fresh.manual_seed(seed)
    if not torch.equal(fresh.get_state(), generator.get_state()):
        raise ConfigurationError(
            f"order='torch' starts from the generator's seed, but this generator (seed {seed}) has "
            "already been used: call generator.manual_seed() first, or pass seed="
        )
    return seed % SEED_LIMIT
