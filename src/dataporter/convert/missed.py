"""Missed rules: those that match nothing, and the paths that may have been meant."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from dataporter.convert.paths import Pattern, Wildcard, shown
from dataporter.errors import ConfigurationError, warn

__all__ = ["fits", "meant", "report_missed"]


def report_missed(
    missed: Sequence[Pattern], where: str, listed: str, there: Sequence[Pattern], *, strict: bool
) -> None:
    """Warn of rules that match nothing, or refuse them.

    Args:
        missed: the rules' paths.
        where: in what they match nothing, such as ``"tensor or array in the first batch"``.
        listed: what there is, for the message.
        there: the paths that rules can match there.
        strict: raise rather than warn.

    Raises:
        ConfigurationError: ``strict``, and there are such rules.
    """
    names = ", ".join(repr(shown(pattern)) for pattern in missed)
    hints = [hint for pattern in missed if (hint := _hint(pattern, there))]
    message = (
        f"{'rules' if len(missed) > 1 else 'rule'} {names} matched no {where}, which has "
        f"{'; '.join([listed, *hints])}"
    )
    if strict:
        raise ConfigurationError(f"{message}; correct the path, or pass strict=False")
    warn(message, RuntimeWarning)


def _hint(pattern: Pattern, there: Sequence[Pattern]) -> str | None:
    close = meant(pattern, there)
    return None if close is None else f"for {shown(pattern)!r}, did you mean {close!r}?"


def meant(pattern: Pattern, there: Sequence[Pattern]) -> str | None:
    """The path that was probably meant by one that matches nothing; None if none is like it."""
    for path in sorted(there, key=lambda path: abs(len(path) - len(pattern))):
        below = len(path) - len(pattern)
        if below > 0 and fits(pattern, path[: len(pattern)]):
            return shown((*pattern, *[Wildcard.ONE] * below))
        if below < 0 and path and fits(pattern[:below], path):
            return shown(pattern[:below])
    close = get_close_matches(shown(pattern), list(map(shown, there)), 1)
    return close[0] if close else None


def fits(pattern: Pattern, path: Pattern) -> bool:
    """Whether a rule's path fits some path; ``*`` in that stands for any index of a list.

    Example:
        >>> fits(("boxes", Wildcard.ONE, "x"), ("boxes", 0, "x"))
        True
        >>> fits(("boxes", "x"), ("boxes", Wildcard.ONE))
        False
    """
    if not pattern and not path:
        return True
    if pattern and pattern[0] is Wildcard.ANY:
        return fits(pattern[1:], path) or bool(path and fits(pattern, path[1:]))
    if path and path[0] is Wildcard.ANY:
        return fits(pattern, path[1:]) or bool(pattern and fits(pattern[1:], path))
    if not pattern or not path:
        return False
    step, there = pattern[0], path[0]
    same = step is Wildcard.ONE or step == there
    same = same or (there is Wildcard.ONE and isinstance(step, int))
    return same and fits(pattern[1:], path[1:])
