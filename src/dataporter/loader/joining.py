"""Membership: the world and the length of the dataset that count for a loader now (C3, C7)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dataporter.errors import ConfigurationError
from dataporter.loader.cursor import AnyCursor
from dataporter.loader.setup import Setup, setup_of
from dataporter.ranks.world import find_world
from dataporter.state.format import StateFormat

__all__ = ["Membership"]


@dataclass(slots=True)
class Membership:
    """A loader's setup, and what a later process group and a dataset that grows make of it.

    The length of the dataset counts as of the start of an epoch.

    Attributes:
        setup: the present one.
        may_join: whether a later group counts: neither the world nor a custom sampler was given,
            and no group was there at construction.
    """

    setup: Setup
    may_join: bool
    _joined: Setup | None = None
    # The length that the ranks have compared; and what was the setup before an epoch began with
    # another length, with the number of that epoch.
    _agreed: int | None = field(init=False)
    _before: tuple[int, Setup] | None = None

    def __post_init__(self) -> None:
        self._agreed = self.setup.dataset_length

    def in_world(self) -> Setup:
        """The setup for the present world. Communicates with no other rank."""
        if not self.may_join or (world := find_world(None, None)).size == 1:
            return self.setup
        if self._joined is None or self._joined.ranks.group is not world.group:
            self._joined = setup_of(self.setup.arguments, world)
        return self._joined

    def upcoming(self, cursor: AnyCursor, *, next_pass: bool = False) -> Setup:
        """The setup for the present world and, at the start of an epoch, for the dataset as it is.

        Args:
            next_pass: as of the start of the next pass, if none is under way.
        """
        setup = self.in_world()
        begins = cursor.upcoming() if next_pass else cursor.progress
        at_start = next_pass or cursor.waiting
        at_start = at_start and not (begins.step or begins.delivered)
        return setup.of_present_length() if at_start else setup

    def standing(self, cursor: AnyCursor) -> tuple[Setup, Any, Any]:
        """The setup for the present world, and the cursor's progress and origin in it."""
        setup = self.in_world()
        if setup is self.setup:
            return self.upcoming(cursor), cursor.progress, cursor.origin
        # The seed decides nothing here, and is not to be drawn for it.
        state = self.setup.format.build(cursor.seed or 0, cursor.progress)
        progress = setup.format.resume(state, None, "error").progress
        return setup, progress, progress

    def join(self, cursor: AnyCursor) -> bool:
        """Take the upcoming setup, where there is one; all ranks of the group call this together.

        The position stays: a state that was loaded is carried over.

        Returns:
            Whether the setup is another one now.

        Raises:
            DataPorterError: the ranks differ, or the position does not fit; nothing changes then.
        """
        before, setup = self.setup, self.in_world()
        if setup is before:
            return False
        resumption = None
        with setup.ranks.agreed("ResumableDataLoader()") as terms:
            seed = cursor.seed_among_ranks()
            terms.equal, terms.first = setup.terms(), seed
            if cursor.moved:
                state = before.format.build(seed, cursor.progress)
                resumption = setup.format.resume(state, setup.arguments.seed, "error")
                terms.equal |= resumption.terms
        if resumption is None:
            cursor.seed = terms.first
        else:
            cursor.move(resumption.seed, resumption.progress)
        self.take(setup)
        self.may_join = False
        return True

    def follow(self, cursor: AnyCursor) -> bool:
        """Take the present length of the dataset where a pass is about to begin an epoch.

        Where it has changed, all ranks of the group call this together.

        Returns:
            Whether the setup is another one now.

        Raises:
            RankMismatchError: the dataset has other lengths, or another content, on other ranks.
        """
        before = self.setup
        begins = cursor.upcoming()
        in_mid_epoch = begins.step or begins.delivered
        setup = before if in_mid_epoch else before.of_present_length()
        if setup.ranks.several and setup.dataset_length != self._agreed:
            with setup.ranks.agreed(
                "iter(loader), after a change of the dataset's length,"
            ) as terms:
                terms.equal = dict(setup.format.terms())
        if setup is before:
            return False
        self.take(setup)
        self._before = begins.epoch, before
        return True

    def take(self, setup: Setup, *, agreed: bool = True) -> None:
        """Let this setup count from here on.

        Args:
            agreed: the ranks have compared it.
        """
        self.setup, self._before = setup, None
        if agreed:
            self._agreed = setup.dataset_length

    def format_at(self, cursor: AnyCursor, progress: Any) -> StateFormat:
        """The format of the states at the cursor's progress, or at one that lags behind it."""
        if progress is cursor.progress:
            return self.upcoming(cursor).format
        if self._before is not None and progress.epoch < self._before[0]:
            return self._before[1].format
        return self.setup.format

    def check(self) -> None:
        """Raise where a pass would begin with a setup that is no longer the world's."""
        if self.in_world() is not self.setup:
            raise ConfigurationError(
                "a process group was initialised between iter(loader) and the first batch, so that "
                "this iterator would read every rank's share: call iter() again"
            )
        if self.may_join:  # an environment that names other ranks is an error from here on
            distributed = self.setup.strategy.name == "distributed"
            find_world(None, None, launched=distributed)
