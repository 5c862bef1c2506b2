"""A limited schedule: `steps_per_epoch` ends each epoch after so many batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dataporter.schedule.schedule import PassRequests, Schedule

__all__ = ["LimitedSchedule"]


@dataclass(frozen=True, slots=True)
class LimitedSchedule:
    """The first ``limit`` batches of each epoch of another schedule."""

    schedule: Schedule
    limit: int

    def requests(self, progress: Any, seed: int) -> PassRequests:
        return self.schedule.requests(progress, seed).limited(self._left(progress))

    def ahead(self, progress: Any, seed: int) -> PassRequests | None:
        ahead = self.schedule.ahead(progress, seed)
        return None if ahead is None else ahead.limited(self.limit)

    def steps(self, progress: Any) -> int:
        left = self._left(progress)
        try:
            return min(left, self.schedule.steps(progress))
        except (TypeError, NotImplementedError):
            # The length of the epoch is unknown, or it has no end.
            return left

    def _left(self, progress: Any) -> int:
        step: int = progress.step
        return max(0, self.limit - step)
