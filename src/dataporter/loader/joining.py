"""Joining: a loader that was built before the process group becomes one of its ranks (C7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dataporter.errors import ConfigurationError
from dataporter.loader.cursor import AnyCursor
from dataporter.loader.setup import Setup, setup_of
from dataporter.ranks.world import find_world

__all__ = ["Membership"]


@dataclass(slots=True)
class Membership:
    """A loader's setup, and the one that a process group initialised later gives it.

    Attributes:
        setup: the present one.
        may_join: whether a later group counts: neither the world nor a custom sampler was given,
            and no group was there at construction.
    """

    setup: Setup
    may_join: bool
    _upcoming: Setup | None = None

    def upcoming(self) -> Setup:
        """The setup for the present world. Communicates with no other rank."""
        if not self.may_join or (world := find_world(None, None)).size == 1:
            return self.setup
        if self._upcoming is None or self._upcoming.ranks.group is not world.group:
            self._upcoming = setup_of(self.setup.arguments, world)
        return self._upcoming

    def standing(self, cursor: AnyCursor) -> tuple[Setup, Any, Any]:
        """The setup for the present world, and the cursor's progress and origin in it."""
        setup = self.upcoming()
        if setup is self.setup:
            return setup, cursor.progress, cursor.origin
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
        before, setup = self.setup, self.upcoming()
        if setup is before:
            return False
        resumption = None
        with setup.ranks.agreed("ResumableDataLoader()") as terms:
            seed = cursor.settled_seed()
            terms.equal, terms.first = {**setup.format.terms(), "seed": setup.seed}, seed
            if cursor.moved:
                state = before.format.build(seed, cursor.progress)
                resumption = setup.format.resume(state, setup.arguments.seed, "error")
                terms.equal |= resumption.terms
        if resumption is None:
            cursor.seed = terms.first
        else:
            cursor.move(resumption.seed, resumption.progress)
        self.setup, self.may_join = setup, False
        return True

    def check(self) -> None:
        """Raise where a pass would begin with a setup that is no longer the world's."""
        if self.upcoming() is not self.setup:
            raise ConfigurationError(
                "a process group was initialised between iter(loader) and the first batch, so that "
                "this iterator would read every rank's share: call iter() again"
            )
        if self.may_join:  # an environment that names other ranks is an error from here on
            distributed = self.setup.strategy.name == "distributed"
            find_world(None, None, launched=distributed)
