"""Draws: what a loader takes from torch's generators in the training process (C8)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import BatchSampler, RandomSampler

from dataporter.loader.setup import Setup
from dataporter.orders.mixture.order import MixtureOrder
from dataporter.schedule.sampler_parts import generators_of, parts_of_sampler
from dataporter.seeding.generators import TORCH
from dataporter.seeding.hashing import fold
from dataporter.seeding.watching import note_read

__all__ = ["Draws", "draws_of", "unlike_others"]


@dataclass(frozen=True, slots=True)
class Draws:
    """What torch's loader draws at the start of a pass, drawn once an epoch.

    torch's loader draws a seed for its workers at each ``iter()``, whether it has workers or not,
    and shuffling without a generator takes one more value. These are drawn where the first batch of
    an epoch is delivered, together with the step of the position: so a state and a generator that
    are saved together always agree, and a resumed pass has nothing to draw.

    Attributes:
        generator: of the first value; by default torch's default generator.
        moves_generator: the first value is drawn, and not only looked at.
        draws_for_order: there is a second value, of the default generator.
    """

    generator: torch.Generator | None = None
    moves_generator: bool = True
    draws_for_order: bool = False

    def seed(self) -> int:
        """The first value that would be drawn now. Moves no generator."""
        source = torch.default_generator if self.generator is None else self.generator
        note_read(TORCH)  # for a loader whose dataset uses this one
        copy = torch.Generator(source.device)
        copy.set_state(source.get_state())
        return _drawn(copy)

    def make(self) -> None:
        """Draw."""
        _given.clear()
        if self.moves_generator:
            _drawn(self.generator)
        if self.draws_for_order:
            _drawn(None)


def draws_of(setup: Setup, generator: torch.Generator | None) -> Draws:
    """The draws of a loader.

    Args:
        generator: the loader's present one.
    """
    arguments, custom = setup.arguments, setup.arguments.custom_sampler
    if custom is None:
        order = setup.order
        if isinstance(order, MixtureOrder):
            order = order.inner
        is_shuffled = order is not None and order.name != "sequential"
        # The state of the generator is the beginning of this order, also for the next loader.
        is_beginning = order is not None and order.name == "torch"
        draws_for_order = is_shuffled and arguments.generator is None
    else:
        # The sampler's order depends on it; and each epoch sets its state.
        parts = () if generator is None else generators_of(parts_of_sampler(custom))
        is_beginning = any(one is generator for one in parts)
        draws_for_order = _draws_a_seed(custom)
    return Draws(generator, generator is None or not is_beginning, draws_for_order)


def unlike_others(seed: int) -> int:
    """The seed, or another one if an earlier call had the same and nothing was drawn since.

    Ranks agree on seeds where loaders are built, with nothing to draw between two of them.
    """
    number, _given[seed] = _given[seed], _given[seed] + 1
    return fold(seed, number) >> 1 if number else seed


_given: Counter[int] = Counter()


def _draws_a_seed(sampler: Any) -> bool:
    """Whether it is torch's sampler that draws a seed for each pass from the default generator."""
    if type(sampler) is BatchSampler:
        sampler = sampler.sampler
    is_torchs = getattr(type(sampler), "__iter__", None) is RandomSampler.__iter__
    return is_torchs and sampler.generator is None


def _drawn(generator: torch.Generator | None) -> int:
    # As in torch's loader, but for torch.set_default_device(), which is for the training.
    device = "cpu" if generator is None else generator.device
    return int(torch.empty((), dtype=torch.int64, device=device).random_(generator=generator))
