"""What a resume on another dataset or configuration repeats and loses, counted beforehand (C6)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dataporter.orders.by_name import order_of_state
from dataporter.schedule.mixed import MixedSchedule
from dataporter.schedule.planned import PlannedSchedule
from dataporter.schedule.progress import Progress
from dataporter.state.schema import State

__all__ = ["UNKNOWN", "consequences"]

UNKNOWN = "How many samples it repeats or loses cannot be known."

# Positions of an epoch; counting them takes about a second.
_MOST = 1 << 24


def consequences(
    saved: State, schedule: PlannedSchedule | MixedSchedule, seed: int, resumed: Progress
) -> str:
    """How many samples the rest of an epoch repeats and loses, in a sentence.

    Args:
        saved: the state that is loaded.
        schedule: of the loader that resumes, with its ``seed``.
        resumed: where it resumes.
    """
    if isinstance(schedule, MixedSchedule):
        return UNKNOWN
    identity, epoch = saved.identity, saved.progress.epoch
    order, length = schedule.order, identity.dataset_length
    if (order.name, order.version) != (identity.order, identity.order_version):
        order = order_of_state(identity.order, identity.order_version) or order
    is_known = (order.name, order.version) == (identity.order, identity.order_version)
    if not is_known or length is None or max(length, schedule.dataset_length) > _MOST:
        return UNKNOWN
    before = replace(schedule, order=order).for_length(length)
    progress = before.within(saved.progress)
    seen = before.seen(progress, progress, saved.seed)
    unseen = before.unseen(progress, progress, saved.seed)
    rest = schedule.unseen(resumed, resumed, seed)
    comes = np.zeros(max(length, schedule.dataset_length), dtype=np.bool_)
    comes[rest] = True
    present = schedule.dataset_length
    again = int(comes[np.unique(seen)].sum())
    lost = int((~comes[unseen[unseen < present]]).sum())
    gone = int((unseen >= present).sum())
    new = int((~comes[length:present]).sum())
    counts = [f"{again} samples that were delivered come again", f"{lost} others do not come"]
    if gone:
        counts.append(f"{gone} are no longer in the dataset")
    if new:
        counts.append(f"{new} new ones come in later epochs only")
    listed = ", ".join(counts[:-1]) + f" and {counts[-1]}"
    return f"In the rest of epoch {epoch}, counted by their indices, {listed}."
