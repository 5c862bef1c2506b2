"""Key paths: which leaves of a nested batch a rule applies to, and which of several rules wins."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any

from dataporter.errors import ConfigurationError
from dataporter.structure import Step

__all__ = ["Match", "Matcher", "Pattern", "Wildcard", "parse", "shown"]


class Wildcard(Enum):
    """A part of a pattern that names no step."""

    ONE = "*"
    ANY = "**"


Pattern = tuple[Step | Wildcard, ...]

# Steps to remember. Batches may have new keys without end, and each rule such as **.a.**.b may
# double the number of matches.
_MOST_KNOWN = 1 << 14
_ELEMENT = re.compile(r"\[(?P<index>\d+)\]|(?P<name>(?:\\.|[^.\[\]\\])+)", re.DOTALL)
_SYNTAX = (
    "write keys joined by dots, [0] for an index of a list or tuple, * for one level, ** for any "
    "number of levels, and a backslash before a dot, star or bracket that is part of a key"
)


def parse(text: str) -> Pattern:
    r"""A pattern from its text.

    Raises:
        ConfigurationError: the text is not a path.

    Example:
        >>> parse(r"inputs[0].**.a\.b")
        ('inputs', 0, <Wildcard.ANY: '**'>, 'a.b')
    """
    if not isinstance(text, str):
        raise ConfigurationError(f"path {text!r}: expected text; {_SYNTAX}")
    steps: list[Step | Wildcard] = []
    end = 0
    while end < len(text):
        # A dot precedes each name but the first, and never an index.
        is_index, has_dot = text[end] == "[", bool(steps) and text[end] == "."
        found = _ELEMENT.match(text, end + has_dot)
        if (
            found is None
            or (found["index"] is not None) != is_index
            or not (is_index or has_dot or not steps)
        ):
            raise ConfigurationError(f"path {text!r}: {text[end:]!r} cannot be read; {_SYNTAX}")
        steps.append(int(found["index"]) if found["index"] else _level(found["name"], text))
        end = found.end()
    return tuple(steps)


def _level(name: str, text: str) -> Step | Wildcard:
    if name in ("*", "**"):
        return Wildcard(name)
    if "*" in re.sub(r"\\.", "", name, flags=re.DOTALL):
        raise ConfigurationError(
            f"path {text!r}: a star stands for whole levels, not for a part of {name!r}; write "
            r"\* if it belongs to the key"
        )
    return re.sub(r"\\(.)", r"\1", name, flags=re.DOTALL)


def shown(path: Sequence[Step | Wildcard]) -> str:
    r"""The text of a path, as :func:`parse` reads it.

    Example:
        >>> shown(("inputs", 0, "a.b"))
        'inputs[0].a\\.b'
    """
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            name = (
                step.value if isinstance(step, Wildcard) else re.sub(r"([.\[\]*\\])", r"\\\1", step)
            )
            text += f".{name}" if text else name
    return text


# A pattern's number, and the end of it that is still to be matched.
_Rest = tuple[int, Pattern]


class Matcher:
    """Finds the rule of a leaf: the most specific of the patterns that fit its path.

    That is the one with most names and indices; then with fewest ``**``; then with most ``*``.

    A walk through a batch begins at ``start`` and looks up one match per level. Each match is
    computed once and remembered.

    Attributes:
        patterns: the rules' paths; a rule's number is its index.
        known: number of steps remembered.

    Raises:
        ConfigurationError: two patterns are the same.
    """

    def __init__(self, patterns: Iterable[Pattern]) -> None:
        self.patterns = tuple(patterns)
        if len(set(self.patterns)) < len(self.patterns):
            twice = next(path for path in self.patterns if self.patterns.count(path) > 1)
            raise ConfigurationError(f"two rules have the path {shown(twice)!r}: leave one out")
        self._forget()

    def __reduce__(self) -> tuple[Any, ...]:
        # Each process remembers its own steps.
        return Matcher, (self.patterns,)

    @property
    def start(self) -> Match:
        """The match of the empty path."""
        if self.known > _MOST_KNOWN:
            self._forget()
        return self._start

    def rule(self, path: Sequence[Step]) -> int | None:
        """The number of the rule for a path, or None if no rule fits.

        Raises:
            ConfigurationError: two rules fit and are equally specific.
        """
        match: Match | None = self.start
        for step in path:
            if match is not None:
                match = match[step]
        return None if match is None else match.rule(path)

    def match(self, rests: Iterable[_Rest]) -> Match | None:
        """The match that leaves these rests, or None if there are none."""
        left = _with_skips(rests)
        if not left:
            return None
        if (match := self._matches.get(left)) is None:
            match = self._matches[left] = Match(self, left)
        return match

    def _forget(self) -> None:
        self.known = 0
        self._matches: dict[frozenset[_Rest], Match] = {}
        self._start = Match(self, _with_skips(enumerate(self.patterns)))


class Match(dict[Step | None, "Match | None"]):
    """What a path leaves of the patterns to be matched; paths that leave the same share it.

    ``match[step]`` is the match one step further, or None if no pattern fits there or below.
    ``match[None]`` stands for all steps that no pattern names here, so new keys share it.
    """

    __slots__ = ("_is_tied", "_matcher", "_names", "_rests", "_rule", "_winners")

    def __init__(self, matcher: Matcher, rests: frozenset[_Rest]) -> None:
        self._matcher, self._rests = matcher, rests
        self._names = {rest[0] for _, rest in rests if rest}
        patterns = matcher.patterns
        fitting = sorted(number for number, rest in rests if not rest)
        most = max((_specificity(patterns[number]) for number in fitting), default=None)
        self._winners = [number for number in fitting if _specificity(patterns[number]) == most]
        self._rule = self._winners[0] if self._winners else None
        self._is_tied = len(self._winners) > 1

    def __missing__(self, step: Step | None) -> Match | None:
        if step is None or step in self._names:
            following = self._matcher.match(
                (number, rest if rest[0] is Wildcard.ANY else rest[1:])
                for number, rest in self._rests
                if rest and rest[0] in (Wildcard.ANY, Wildcard.ONE, step)
            )
        else:
            following = self[None]
        self[step] = following
        self._matcher.known += 1
        return following

    def rule(self, path: Sequence[Step]) -> int | None:
        """The number of the rule for a leaf here, or None if no rule fits.

        Args:
            path: of the leaf, for the error.

        Raises:
            ConfigurationError: two rules fit and are equally specific.
        """
        if self._is_tied:
            one, other = (shown(self._matcher.patterns[number]) for number in self._winners[:2])
            raise ConfigurationError(
                f"rules {one!r} and {other!r} are equally specific, and both fit the path "
                f"{shown(path)!r}: make one of them more specific, or leave one out"
            )
        return self._rule


def _with_skips(rests: Iterable[_Rest]) -> frozenset[_Rest]:
    """The rests, with those that remain if a leading ``**`` stands for no level."""
    found = set()
    for number, rest in rests:
        found.add((number, rest))
        while rest and rest[0] is Wildcard.ANY:
            rest = rest[1:]
            found.add((number, rest))
    return frozenset(found)


def _specificity(pattern: Pattern) -> tuple[int, int, int]:
    anys, ones = pattern.count(Wildcard.ANY), pattern.count(Wildcard.ONE)
    return len(pattern) - anys - ones, -anys, ones
