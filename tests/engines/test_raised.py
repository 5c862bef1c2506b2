"""An exception of a worker arrives with its type, text, arguments, attributes, notes and causes."""

from __future__ import annotations

import asyncio
import builtins
import json
import pickle
import subprocess
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from budgets import cases
from hypothesis import example, given, settings
from hypothesis import strategies as st
from subjects import Indices

from dataporter import ConfigurationError, LossyConversionError, ResumableDataLoader, SampleError
from dataporter.engines.messages import Failure, WorkerTraceback
from dataporter.errors import TooManyFailuresError, add_note


def sent(error: BaseException) -> Any:
    return pickle.loads(pickle.dumps(Failure.from_exception(error))).rebuilt()


class MakesItsText(Exception):
    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is broken")


class TakesSeveral(ValueError):
    def __init__(self, one: int, two: str = "b", *, three: Any) -> None:
        super().__init__(f"{one} and {two}", three)
        self.one, self.two, self.three = one, two, three


class TakesNone(KeyError):
    def __init__(self) -> None:
        super().__init__("no key")


class OnlyAttributes(Exception):
    def __init__(self, path: str) -> None:
        self.path = path

    def __str__(self) -> str:
        return f"no file {self.path}"


class Slotted(RuntimeError):
    __slots__ = ("__private", "place")

    def __init__(self, place: int) -> None:
        super().__init__("slotted")
        self.place = place
        self.__private = place + 1

    def __str__(self) -> str:
        return f"{self.place} {self.__private}"


class FromTheSystem(OSError):
    def __init__(self, path: str) -> None:
        super().__init__(2, "gone", path)


class TwoBases(LookupError, OSError):
    """Laid out as the second one is."""


class MadeAnew(Exception):
    def __new__(cls, text: str, *, needed: int) -> MadeAnew:
        made = super().__new__(cls, text)
        made.needed = needed
        return made

    def __init__(self, text: str, *, needed: int) -> None:
        super().__init__(text)


class Unsettable(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.__dict__["text"] = text

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(name)


class Reduces(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()
        self.text = text

    def __reduce__(self) -> Any:
        return Reduces, (self.text,)


class ReducesWrongly(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(f"made of {text}")

    def __reduce__(self) -> Any:
        return ReducesWrongly, self.args


def caught(function: Callable[[], Any]) -> BaseException:
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError


def with_attributes(error: Exception, **attributes: Any) -> Exception:
    vars(error).update(attributes)
    return error


ERRORS: dict[str, Callable[[], BaseException]] = {
    "makes its text": lambda: MakesItsText("sample 0"),
    "takes several": lambda: TakesSeveral(1, "c", three=[3]),
    "takes none": TakesNone,
    "only attributes": lambda: OnlyAttributes("a.jpg"),
    "slotted": lambda: Slotted(3),
    "made anew": lambda: MadeAnew("text", needed=3),
    "unsettable": lambda: Unsettable("text"),
    "reduces": lambda: Reduces("text"),
    "reduces wrongly": lambda: ReducesWrongly("text"),
    "attributes": lambda: with_attributes(ValueError("x"), a=1, b=torch.Size([2])),
    "key": lambda: KeyError("a"),
    "index": lambda: caught(lambda: [][1]),
    "attribute": lambda: caught(lambda: torch.zeros(3).nothing),  # type: ignore[attr-defined]
    "name": lambda: caught(lambda: nothing),  # type: ignore[name-defined]  # noqa: F821
    "system": lambda: OSError(5, "broken", "a.jpg"),
    "not found": lambda: caught(lambda: open("/no/such/file")),  # noqa: SIM115
    "renamed": lambda: OSError(5, "broken", "a.jpg", None, "b.jpg"),
    "system, plain": lambda: OSError("just text"),
    "system, own": lambda: FromTheSystem("a.jpg"),
    "system, changed": lambda: with_attributes(OSError(), errno=2),
    "two bases": lambda: TwoBases("text"),
    "timeout": lambda: TimeoutError("slow"),
    "decode": lambda: caught(lambda: b"\xff".decode("utf-8")),
    "encode": lambda: caught(lambda: "\ud800".encode()),
    "import": lambda: caught(lambda: __import__("no_such_module.inner")),
    "syntax": lambda: caught(lambda: compile("a b", "file.py", "exec")),
    "json": lambda: caught(lambda: json.loads("[1,")),
    "process": lambda: subprocess.CalledProcessError(3, ["ls"], "out", "err"),
    "incomplete": lambda: asyncio.IncompleteReadError(b"ab", 3),
    "stop": lambda: StopIteration(3),
    "exit": lambda: SystemExit(3),
    "ours": lambda: ConfigurationError("wrong"),
    "ours, reduced": lambda: LossyConversionError(
        "loss", path="a", value=3, sample=None, dtype="int8", fits=None
    ),
    "ours, counted": lambda: TooManyFailuresError("many", total=3),
    "within": lambda: ValueError("outer", MakesItsText("inner")),
    "torch": lambda: caught(lambda: torch.zeros(2) @ torch.zeros(3)),
    "without arguments": lambda: Exception(),
}
if hasattr(builtins, "ExceptionGroup"):
    ERRORS["group"] = lambda: ExceptionGroup(  # noqa: F821
        "both",
        [MakesItsText("a"), ExceptionGroup("inner", [OSError(2, "b", "c")])],  # noqa: F821
    )


def described(error: BaseException) -> Any:
    """What a program can see of it; exceptions are equal only to themselves."""
    others = [error.__cause__, error.__context__, *getattr(error, "exceptions", ())]
    return (
        type(error),
        str(error),
        repr(error.args),
        {name: repr(value) for name, value in vars(error).items() if name != "lock"},
        [
            repr(getattr(error, name, None))
            for name in ("errno", "strerror", "filename", "filename2", "code", "value", "name")
        ],
        [
            other if other is None else described(other)
            for other in others
            if type(other) is not WorkerTraceback
        ],
    )


@pytest.mark.parametrize("make", ERRORS.values(), ids=ERRORS)
def test_an_exception_arrives_as_it_was(make: Callable[[], BaseException]) -> None:
    error = make()
    expected = described(error)
    vars(error)["__notes__"] = ["first", "second"]
    found = sent(error)
    assert found.__notes__ == error.__notes__  # type: ignore[attr-defined]
    for each in (error, found):
        del vars(each)["__notes__"]
    assert described(found)[:-1] == expected[:-1]


VALUES = st.recursive(
    st.one_of(st.none(), st.integers(), st.text(max_size=4), st.binary(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.builds(ValueError, inner),
        st.builds(TakesSeveral, three=inner, one=st.just(1)),
    ),
    max_leaves=4,
)
RAISED = st.builds(
    lambda kind, args, attributes: with_attributes(kind.__new__(kind, *args), **attributes),
    st.sampled_from([ValueError, KeyError, OSError, MakesItsText, TakesSeveral, Slotted]),
    st.lists(VALUES, max_size=3),
    st.dictionaries(st.sampled_from("abc"), VALUES, max_size=2),
)


@settings(max_examples=cases(200))
@example(OSError(None, None), [], [])
@given(RAISED, st.lists(st.text(max_size=3), max_size=2), st.lists(RAISED, max_size=3))
def test_any_exception_arrives_as_it_was(
    error: Exception, notes: list[str], causes: list[Exception]
) -> None:
    if type(error) is Slotted:
        error.place = 3  # type: ignore[attr-defined]
        error._Slotted__private = 4  # type: ignore[attr-defined]
    for note in notes:
        add_note(error, note)
    chain: list[BaseException] = [error]
    for cause in causes:
        if type(cause) is not Slotted and cause not in chain:
            chain[-1].__cause__ = cause
            chain.append(cause)
    found, expected = sent(error), described(error)
    last = found
    for _ in chain[1:]:
        last = last.__cause__
    assert type(last.__cause__) is WorkerTraceback
    last.__cause__ = None
    assert described(found) == expected


def test_the_causes_and_the_context_arrive_and_the_traceback_is_the_last_cause() -> None:
    def fail() -> None:
        try:
            try:
                raise MakesItsText("disk")
            except MakesItsText as error:
                raise OSError(5, "unreadable") from error
        except OSError:
            raise KeyError("sample")  # noqa: B904  # the context is what is tested

    found = sent(caught(fail))
    assert type(found) is KeyError
    assert type(found.__cause__) is WorkerTraceback
    assert "disk is broken" in str(found.__cause__)
    assert type(found.__context__) is OSError
    assert type(found.__context__.__cause__) is MakesItsText
    found = sent(found.__context__)
    assert type(found.__cause__.__cause__) is WorkerTraceback


def test_an_exception_that_is_a_part_of_itself_arrives() -> None:
    error = ValueError("loop")
    error.args = (error, "loop")
    error.me = error  # type: ignore[attr-defined]
    other = KeyError("other")
    error.__context__, other.__context__ = other, error
    found = sent(error)
    assert type(found) is ValueError
    assert found.args[1] == "loop"
    assert type(found.__context__) is KeyError


def test_what_cannot_be_pickled_stays_behind_and_a_note_names_it() -> None:
    lock = threading.Lock()
    error = with_attributes(ValueError("locked", lock), lock=lock, path="a.jpg")
    found = sent(error)
    assert type(found) is ValueError
    assert str(found) == str(error)
    assert found.path == "a.jpg"
    assert not hasattr(found, "lock")
    (note,) = found.__notes__
    assert "without lock, which cannot be pickled and stayed in the worker" in note


def test_the_object_of_an_attribute_error_which_may_be_the_dataset_is_not_sent() -> None:
    error = caught(lambda: torch.zeros(1_000_000).nothing)  # type: ignore[attr-defined]
    assert len(pickle.dumps(Failure.from_exception(error))) < 10_000


# ---- through workers


class Failing(Indices):
    def __init__(self, make: Callable[[], BaseException]) -> None:
        super().__init__(4)
        self.make = make

    def __getitem__(self, index: int) -> int:
        if index == 2:
            raise self.make()
        return index


LOCAL = [{}, {"num_workers": 1, "multiprocessing_context": "fork"}]


@pytest.mark.parametrize("arguments", LOCAL)
def test_a_local_class_is_the_same_class_in_the_training_process(arguments: Any) -> None:
    def classes() -> type[Exception]:
        class Local(Exception):
            def __init__(self, one: int, two: int) -> None:
                super().__init__(one + two)

        return Local

    first, second, third = classes(), classes(), classes()
    loader = ResumableDataLoader(Failing(lambda: second(3, 4)), 1, **arguments)
    with pytest.raises(second, match="7") as found:
        list(loader)
    assert type(found.value) not in (first, third)


NAMES = ["makes its text", "takes several", "slotted", "system, own", "exit"]
KINDS = [{}, {"num_workers": 1}, {"num_workers": 1, "worker_kind": "thread"}]


@pytest.mark.parametrize("arguments", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_each_engine_raises_the_same(name: str, arguments: Any) -> None:
    loader = ResumableDataLoader(Failing(ERRORS[name]), 1, **arguments)
    expected = ERRORS[name]()
    with pytest.raises(type(expected)) as found:
        list(loader)
    assert type(found.value) is type(expected)
    assert str(found.value) == str(expected)
    assert repr(found.value.args) == repr(expected.args)
    assert loader.step == 2


def test_a_class_that_only_the_worker_has_is_named_and_the_attributes_are_kept() -> None:
    def make() -> Exception:
        class Local(Exception):
            pass

        error = Local("lost")
        error.path = "a.jpg"  # type: ignore[attr-defined]
        return error

    with pytest.raises(SampleError, match="Local: lost") as found:
        list(ResumableDataLoader(Failing(make), 1, num_workers=1))
    assert found.value.path == "a.jpg"  # type: ignore[attr-defined]
