"""Changes: what may change between a save and a load, and what must stay (C6)."""

from __future__ import annotations

from dataporter.errors import ConfigurationError
from dataporter.state.strategies import ResumptionStrategy, strategy_named

__all__ = ["sorted_out", "strategy_of"]


def strategy_of(name: str) -> tuple[ResumptionStrategy | None, list[str]]:
    """The strategy of this name, and a note where it is a custom one."""
    try:
        return strategy_named(name), []
    except ConfigurationError:
        return None, [f"strategy {name!r} is one of your own: what else may change only it can say"]


def sorted_out(
    free: list[str],
    fixed: list[str],
    strategy: ResumptionStrategy | None,
    batch_size: int | None,
    world_size: int,
    *,
    is_elastic: bool = True,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What may change, and what must stay, by the strategy."""
    may_change = frozenset[str]()
    if strategy is not None:
        may_change = strategy.may_change.union(
            *(strategy_named(kin).may_change for kin in strategy.kin)
        )
    size = "no batching" if batch_size is None else f"the batch size ({batch_size:,})"
    (free if "batch_size" in may_change else fixed).append(size)
    world = f"the number of ranks ({world_size:,})"
    (free if "world_size" in may_change and is_elastic else fixed).append(world)
    return tuple(free), (*fixed, "a seed, if one is given")
