"""How many cases a law draws: ``make test`` draws few of them, ``make test-all`` all."""

from hypothesis import settings


def cases(full: int) -> int:
    """``max_examples`` of a law that asks for another number than 100, scaled to this run.

    The profile that is loaded says how many a law draws that asks for nothing.
    """
    return max(3, full * settings.default.max_examples // 100)
