"""Key paths: how a rule says which leaves of a nested batch it is about, and which rule wins."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from dataporter.errors import ConfigurationError
from dataporter.structure import Step

__all__ = ["ROOT", "Matcher", "Pattern", "matcher_of", "parse", "shown"]


class Wildcard(Enum):
    """A level of a pattern that has no name."""

    ONE = "*"
    ANY = "**"


Pattern = tuple[Step | Wildcard, ...]

ROOT = 0
_DEAD = -1
# Rules such as **.a.**.b double the states, each of them; a thousand plain ones are far from this.
_MOST_STATES = 1 << 14
_ELEMENT = re.compile(r"\[(?P<place>\d+)\]|(?P<name>(?:\\.|[^.\[\]\\])+)", re.DOTALL)
_SYNTAX = (
    "write keys joined by dots, [0] for places in lists and tuples, * for one level, ** for any "
    "number of levels, and a backslash before a dot, star or bracket that is part of a key"
)


def parse(text: str) -> Pattern:
    r"""A pattern from its text.

    Raises:
        ConfigurationError: it is no path.

    Example:
        >>> parse(r"inputs[0].**.a\.b")
        ('inputs', 0, <Wildcard.ANY: '**'>, 'a.b')
    """
    if not isinstance(text, str):
        raise ConfigurationError(f"path {text!r}: expected text; {_SYNTAX}")
    steps: list[Step | Wildcard] = []
    end = 0
    while end < len(text):
        # A dot stands before each name but the first, and before no place.
        is_place, has_dot = text[end] == "[", bool(steps) and text[end] == "."
        found = _ELEMENT.match(text, end + has_dot)
        if (
            found is None
            or (found["place"] is not None) != is_place
            or not (is_place or has_dot or not steps)
        ):
            raise ConfigurationError(
                f"path {text!r}: cannot be read from {text[end:]!r} on; {_SYNTAX}"
            )
        steps.append(int(found["place"]) if found["place"] else _level(found["name"], text))
        end = found.end()
    return tuple(steps)


def _level(name: str, text: str) -> Step | Wildcard:
    if name in ("*", "**"):
        return Wildcard(name)
    if "*" in re.sub(r"\\.", "", name, flags=re.DOTALL):
        raise ConfigurationError(
            f"path {text!r}: a star stands for whole levels, and here for a part of {name!r}; "
            rf"write \* where it is part of a key"
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


@dataclass(frozen=True, slots=True)
class Matcher:
    """Patterns as one automaton: a state for each set of patterns that a path may still fulfil.

    So a walk through a batch takes one look-up a level, and stops where nothing can match.

    Attributes:
        steps: for each state, where the steps lead to that it knows by name.
        others: for each state, where every other step leads to.
        rules: for each state, which pattern a path that ends there belongs to.
    """

    steps: tuple[dict[Step, int], ...]
    others: tuple[int, ...]
    rules: tuple[int | None, ...]

    def next(self, state: int, step: Step) -> int | None:
        """The state one level further down, or None where nothing can match any more."""
        following = self.steps[state].get(step, self.others[state])
        return None if following == _DEAD else following

    def rule(self, path: Sequence[Step]) -> int | None:
        """The number of the pattern that a path belongs to."""
        state: int | None = ROOT
        for step in path:
            if state is not None:
                state = self.next(state, step)
        return None if state is None else self.rules[state]


# Which patterns a path may still fulfil: (pattern, how much of it has been matched).
_Threads = frozenset[tuple[int, int]]


def matcher_of(patterns: Sequence[Pattern]) -> Matcher:
    """The automaton of the patterns; for each path the most specific one wins.

    That is the one with most steps by name; then with fewest ``**``; then with most ``*``.

    Raises:
        ConfigurationError: two are equally specific and fit the same path; or so many have ``**``
            between names that no automaton of a reasonable size tells them apart.
    """
    start = _closure(patterns, {(number, 0) for number in range(len(patterns))})
    numbers: dict[_Threads, int] = {start: ROOT}
    steps: list[dict[Step, int]] = []
    others: list[int] = []
    rules: list[int | None] = []
    waiting: deque[tuple[_Threads, tuple[Step, ...]]] = deque([(start, ())])

    def number_of(threads: _Threads, path: tuple[Step, ...]) -> int:
        if not threads:
            return _DEAD
        if threads not in numbers:
            if len(numbers) == _MOST_STATES:
                raise ConfigurationError(
                    f"these {len(patterns)} rules can be met in more than {_MOST_STATES} "
                    "combinations: name the levels of some, instead of joining them by '**'"
                )
            numbers[threads] = len(numbers)
            waiting.append((threads, path))
        return numbers[threads]

    while waiting:
        threads, path = waiting.popleft()
        rules.append(_winner(patterns, threads, path))
        named = [
            step
            for number, matched in sorted(threads)
            if matched < len(patterns[number])
            and not isinstance(step := patterns[number][matched], Wildcard)
        ]
        steps.append(
            {
                step: number_of(_advanced(patterns, threads, step), (*path, step))
                for step in dict.fromkeys(named)
            }
        )
        others.append(number_of(_advanced(patterns, threads, None), (*path, "…")))
    return Matcher(tuple(steps), tuple(others), tuple(rules))


def _advanced(patterns: Sequence[Pattern], threads: _Threads, step: Step | None) -> _Threads:
    following: set[tuple[int, int]] = set()
    for number, matched in threads:
        if matched == len(patterns[number]):
            continue
        expected = patterns[number][matched]
        if expected is Wildcard.ANY:
            following.add((number, matched))
        elif expected is Wildcard.ONE or (step is not None and expected == step):
            following.add((number, matched + 1))
    return _closure(patterns, following)


def _closure(patterns: Sequence[Pattern], threads: set[tuple[int, int]]) -> _Threads:
    """With what a ``**`` matches by standing for no level at all."""
    waiting = list(threads)
    while waiting:
        number, matched = waiting.pop()
        pattern = patterns[number]
        skipped = (number, matched + 1)
        if matched < len(pattern) and pattern[matched] is Wildcard.ANY and skipped not in threads:
            threads.add(skipped)
            waiting.append(skipped)
    return frozenset(threads)


def _winner(patterns: Sequence[Pattern], threads: _Threads, path: tuple[Step, ...]) -> int | None:
    fulfilled = [number for number, matched in threads if matched == len(patterns[number])]
    if not fulfilled:
        return None
    fulfilled.sort(key=lambda number: (_specificity(patterns[number]), -number), reverse=True)
    best = fulfilled[0]
    for other in fulfilled[1:]:
        if _specificity(patterns[other]) == _specificity(patterns[best]):
            raise ConfigurationError(
                f"rules {shown(patterns[best])!r} and {shown(patterns[other])!r} are equally "
                f"specific, and both fit the path {shown(path)!r}: make one of them more specific, "
                "or leave one out"
            )
    return best


def _specificity(pattern: Pattern) -> tuple[int, int, int]:
    anys, ones = pattern.count(Wildcard.ANY), pattern.count(Wildcard.ONE)
    return len(pattern) - anys - ones, -anys, ones
