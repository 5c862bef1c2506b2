"""Key paths: what a rule's text means, which leaves it fits, and which of two rules wins."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataporter import ConfigurationError
from dataporter.convert.paths import Wildcard, matcher_of, parse, shown

ANY, ONE = Wildcard.ANY, Wildcard.ONE

keys = st.text(min_size=1, max_size=6) | st.sampled_from(["*", "**", ".", "a.b", "[0]", "\\", "a*"])
steps = keys | st.integers(0, 99) | st.sampled_from(list(Wildcard))
patterns = st.lists(steps, max_size=5).map(tuple)


@given(patterns)
def test_a_path_is_read_as_it_is_shown(pattern: tuple[Any, ...]) -> None:
    assert parse(shown(pattern)) == pattern


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("", ()),
        ("labels", ("labels",)),
        ("inputs.image", ("inputs", "image")),
        ("[0]", (0,)),
        ("[0][12].x", (0, 12, "x")),
        ("targets[3].boxes", ("targets", 3, "boxes")),
        ("*.image", (ONE, "image")),
        ("**", (ANY,)),
        ("**[0]", (ANY, 0)),
        (r"a\.b.c", ("a.b", "c")),
        (r"\*", ("*",)),
        (r"\[0\]", ("[0]",)),
        ("0", ("0",)),
        ("spaces and ü", ("spaces and ü",)),
    ],
)
def test_what_a_text_means(text: str, pattern: tuple[Any, ...]) -> None:
    assert parse(text) == pattern


@pytest.mark.parametrize(
    "text",
    [
        "a..b",
        ".a",
        "a.",
        "a[0]b",
        "a.[0]",
        "a[-1]",
        "a[*]",
        "a[x]",
        "a[",
        "a]",
        "[0].",
        "x*",
        "a\\",
    ],
)
def test_what_is_no_path_is_refused_with_the_place_and_the_syntax(text: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(repr(text))):
        parse(text)


def test_only_text_is_a_path() -> None:
    with pytest.raises(ConfigurationError, match="expected text"):
        parse(3)  # type: ignore[arg-type]


def fits(pattern: tuple[Any, ...], path: tuple[Any, ...]) -> bool:
    """What a pattern means, said once more, as plainly as possible."""
    if not pattern:
        return not path
    first, rest = pattern[0], pattern[1:]
    if first is ANY:
        return any(fits(rest, path[skipped:]) for skipped in range(len(path) + 1))
    return bool(path) and (first is ONE or first == path[0]) and fits(rest, path[1:])


few_steps = st.sampled_from(["a", "b", 0, ONE, ANY])
few_patterns = st.lists(few_steps, max_size=4).map(tuple)
ALL_PATHS = [path for length in range(5) for path in product(["a", "b", "c", 0, 1], repeat=length)]


def rank(pattern: tuple[Any, ...]) -> tuple[int, int, int]:
    wildcards = pattern.count(ANY) + pattern.count(ONE)
    return len(pattern) - wildcards, -pattern.count(ANY), pattern.count(ONE)


@given(st.lists(few_patterns, max_size=4, unique=True))
def test_the_most_specific_of_the_rules_that_fit_wins_and_a_tie_is_an_error(
    rules: list[tuple[Any, ...]],
) -> None:
    """Compared with the definition, on every path of up to four levels."""
    wanted: dict[tuple[Any, ...], int | None] = {}
    tied = False
    for path in ALL_PATHS:
        fitting = [number for number, pattern in enumerate(rules) if fits(pattern, path)]
        best = max((rank(rules[number]) for number in fitting), default=None)
        winners = [number for number in fitting if rank(rules[number]) == best]
        tied |= len(winners) > 1
        wanted[path] = winners[0] if winners else None
    if tied:
        with pytest.raises(ConfigurationError, match="equally specific"):
            matcher_of(rules)
        return
    try:
        matcher = matcher_of(rules)
    except ConfigurationError:
        # A tie on a path that is longer than those compared.
        assert sum(len(pattern) for pattern in rules) > 4
        return
    assert {path: matcher.rule(path) for path in ALL_PATHS} == wanted


@pytest.mark.parametrize(
    ("more", "less"),
    [("a.b", "a.*"), ("a.*", "**.b"), ("*", "**"), ("**.labels", "**"), ("a.b.**", "a.**")],
)
def test_which_rule_is_more_specific(more: str, less: str) -> None:
    path = {"a.*": ("a", "b"), "*": ("x",), "**.labels": ("x", "labels")}.get(more, ("a", "b"))
    for rules in ([more, less], [less, more]):
        assert rules[matcher_of([parse(rule) for rule in rules]).rule(path) or 0] == more


def test_a_tie_is_told_with_both_rules_and_a_path_that_both_fit() -> None:
    with pytest.raises(ConfigurationError, match=r"'a\.\*' and '\*\.b'.*'a\.b'"):
        matcher_of([parse("a.*"), parse("*.b")])
    # Rules that look alike but can never meet are fine.
    matcher_of([parse("a.*"), parse("b.*"), parse("*.a.c")])


def test_a_walk_ends_where_nothing_can_match_any_more() -> None:
    matcher = matcher_of([parse("inputs.image"), parse("labels")])
    assert matcher.next(0, "text") is None
    inputs = matcher.next(0, "inputs")
    assert inputs is not None
    assert matcher.next(inputs, "caption") is None


def test_rules_that_no_reasonable_automaton_tells_apart_are_refused_soon() -> None:
    rules = [parse(f"**.a{number}.**.b{number}") for number in range(40)]
    with pytest.raises(ConfigurationError, match="40 rules"):
        matcher_of(rules)
    # Many rules are no trouble by themselves.
    many = [parse(f"group{number % 50}.leaf{number}") for number in range(3000)]
    assert matcher_of(many).rule(("group7", "leaf57")) == 57
