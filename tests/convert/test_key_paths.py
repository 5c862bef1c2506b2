"""Key paths: the meaning of a rule's text, the leaves it fits, and which of two rules wins."""

from __future__ import annotations

import pickle
import re
from itertools import product
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataporter import ConfigurationError
from dataporter.convert import paths
from dataporter.convert.paths import Match, Matcher, Wildcard, parse, shown

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
def test_an_invalid_path_is_refused_with_the_reason_and_the_syntax(text: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(repr(text))):
        parse(text)


def test_only_text_is_a_path() -> None:
    with pytest.raises(ConfigurationError, match="expected text"):
        parse(3)  # type: ignore[arg-type]


def fits(pattern: tuple[Any, ...], path: tuple[Any, ...]) -> bool:
    """The definition of a pattern, as plain as possible."""
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


@pytest.mark.parametrize("most_known", [5, 1 << 14])
def test_the_most_specific_of_the_rules_that_fit_wins_and_a_tie_is_an_error(
    most_known: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compared with the definition, on every path of up to four levels, for each memory limit."""
    monkeypatch.setattr(paths, "_MOST_KNOWN", most_known)

    @given(st.lists(few_patterns, max_size=4, unique=True))
    def compare(rules: list[tuple[Any, ...]]) -> None:
        matcher = Matcher(rules)
        for path in ALL_PATHS:
            fitting = [number for number, pattern in enumerate(rules) if fits(pattern, path)]
            best = max((rank(rules[number]) for number in fitting), default=None)
            winners = [number for number in fitting if rank(rules[number]) == best]
            if len(winners) > 1:
                with pytest.raises(ConfigurationError, match="equally specific"):
                    matcher.rule(path)
            else:
                assert matcher.rule(path) == (winners[0] if winners else None)

    compare()


@pytest.mark.parametrize(
    ("more", "less"),
    [("a.b", "a.*"), ("a.*", "**.b"), ("*", "**"), ("**.labels", "**"), ("a.b.**", "a.**")],
)
def test_which_rule_is_more_specific(more: str, less: str) -> None:
    path = {"a.*": ("a", "b"), "*": ("x",), "**.labels": ("x", "labels")}.get(more, ("a", "b"))
    for rules in ([more, less], [less, more]):
        assert rules[Matcher(map(parse, rules)).rule(path) or 0] == more


def test_a_tie_names_both_rules_and_the_path_that_both_fit() -> None:
    matcher = Matcher([parse("a.*"), parse("*.b")])
    with pytest.raises(ConfigurationError, match=r"'a\.\*' and '\*\.b'.*'a\.b'"):
        matcher.rule(("a", "b"))
    # Other paths have their rule.
    assert matcher.rule(("a", "c")) == 0
    assert matcher.rule(("c", "b")) == 1


def test_the_same_path_twice_is_an_error_without_a_batch() -> None:
    with pytest.raises(ConfigurationError, match=r"two rules have the path 'a\.b'"):
        Matcher([parse("a.b"), parse("*"), parse(r"\a.b")])


def test_a_walk_ends_where_no_rule_can_match() -> None:
    start = Matcher([parse("inputs.image"), parse("labels")]).start
    assert start["text"] is None
    inputs = start["inputs"]
    assert inputs is not None
    assert inputs["caption"] is None


def test_rules_that_can_meet_in_any_combination_are_told_apart_soon() -> None:
    """There are 2**40 combinations, but a path meets only as many as it has steps."""
    matcher = Matcher(parse(f"**.a{number}.**.b{number}") for number in range(40))
    first = tuple(f"a{number}" for number in range(40))
    assert [matcher.rule((*first, f"b{number}")) for number in range(40)] == list(range(40))
    assert matcher.rule((*first[:7], "b7")) is None
    # Many plain rules are matched quickly.
    many = Matcher(parse(f"group{number % 50}.leaf{number}") for number in range(3000))
    assert many.rule(("group7", "leaf57")) == 57


def test_new_keys_and_combinations_take_no_more_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(paths, "_MOST_KNOWN", 100)
    matcher = Matcher(parse(f"**.a{number}.**.b{number}") for number in range(40))
    draw = Random(1)
    largest = 0
    for number in range(1000):
        path = [f"a{draw.randrange(40)}" for _ in range(5)] + [f"new {number}", "b1"]
        assert matcher.rule(path) == (1 if "a1" in path else None)
        largest = max(largest, len(remembered(matcher.start)))
    assert largest <= 100 + len(path)


def remembered(match: Match) -> dict[int, Match]:
    """All matches that are reachable without computing any, by identity."""
    found = {id(match): match}
    waiting = [match]
    while waiting:
        for following in waiting.pop().values():
            if following is not None and id(following) not in found:
                found[id(following)] = following
                waiting.append(following)
    return found


def test_a_pickle_holds_the_patterns_only() -> None:
    matcher = Matcher([parse("a.*"), parse("**.b")])
    before = pickle.dumps(matcher)
    assert [matcher.rule(path) for path in ALL_PATHS].count(0) == 5
    assert pickle.dumps(matcher) == before
    again = pickle.loads(before)
    assert [again.rule(path) for path in ALL_PATHS] == [matcher.rule(path) for path in ALL_PATHS]
