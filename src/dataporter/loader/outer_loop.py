"""The outer loop: its epochs, and warnings where a loop would lose part of one (C2, C3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from dataporter.errors import warn
from dataporter.loader.cursor import AnyCursor

__all__ = [
    "epochs_until",
    "warn_of_discarded_position",
    "warn_of_empty_pass",
    "warn_of_left_pass",
]

# A pass that is left after at most so many batches was probably a look at them.
_AT_MOST_LOOKED_AT = 3


def epochs_until(
    stop: int,
    cursor_of: Callable[[], AnyCursor],
    look: Callable[[], None],
    drive: Callable[[int], None],
) -> Iterator[int]:
    """The numbers of the epochs before ``stop``; the loader's cursor is set to each in turn.

    Args:
        look: follows the epoch that was set on a custom sampler.
        drive: sets the epoch of a custom sampler.
    """
    look()
    epoch = cursor_of().upcoming().epoch
    try:
        while epoch < stop:
            cursor = cursor_of()
            # Also where a pass that was left leads there: a state saved now is of this epoch.
            if not cursor.progress.epoch == cursor.upcoming().epoch == epoch:
                cursor.set_epoch(epoch)
            drive(epoch)
            cursor.held, revoked = epoch, cursor.revoked
            yield epoch
            cursor = cursor_of()
            cursor.held = None
            # A state that was loaded in the body decides; otherwise the numbers are counted,
            # whatever else read from the loader.
            epoch = cursor.upcoming().epoch if cursor.revoked != revoked else epoch + 1
    finally:
        cursor_of().held = None


def warn_of_left_pass(cursor: AnyCursor, *, is_sequential: bool, remaining: int | None) -> bool:
    """Warn where the rest of an epoch is lost after a look at its first batches.

    Args:
        is_sequential: all epochs are the same.
        remaining: batches in the rest of the epoch; None where that is unknown.

    Returns:
        Whether it has warned.
    """
    looked_at, upcoming, resumed = cursor.left_early(), cursor.upcoming(), cursor.origin.step > 0
    if looked_at is None or looked_at > _AT_MOST_LOOKED_AT or remaining == 0:
        return False
    if upcoming.continues:
        return False
    if not resumed and (is_sequential or upcoming.epoch == cursor.progress.epoch):
        return False  # the next pass has all of it
    batches = "1 batch" if looked_at == 1 else f"{looked_at} batches"
    where = f", which began at its step {cursor.origin.step}," if resumed else ""
    warn(
        f"iter(loader) begins epoch {upcoming.epoch} at its start, and the rest of epoch "
        f"{cursor.progress.epoch} is not read: its pass{where} was left after {batches}. To look "
        "at a batch, write loader.peek(); to end epochs early, pass steps_per_epoch=",
        RuntimeWarning,
    )
    return True


def warn_of_empty_pass(cursor: AnyCursor) -> None:
    """Warn of a pass without a batch, which a loop that counts passes takes for an epoch."""
    epoch, step = cursor.progress.epoch, cursor.progress.step
    if step and cursor.held is None:
        warn(
            f"this pass has no batch: the state that it resumes from was saved after step {step}, "
            f"the last of epoch {epoch}, and the next pass is epoch {epoch + 1}. In a loop that "
            "counts the passes, the last epoch would be missing: write "
            "`for epoch in loader.epochs(number_of_epochs):`",
            RuntimeWarning,
        )


def warn_of_discarded_position(cursor: AnyCursor, epoch: int) -> None:
    """Warn where setting ``epoch`` discards the position of a loaded state."""
    before = cursor.progress
    if cursor.loaded and epoch != before.epoch and (before.step or epoch < before.epoch):
        warn(
            f"epoch {epoch} was set, which discards the position of the state that was loaded: "
            f"epoch {before.epoch}, step {before.step}. Write "
            "`for epoch in loader.epochs(number_of_epochs):`, which begins where the state is",
            RuntimeWarning,
        )
