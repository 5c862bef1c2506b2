"""Raised: an exception of a worker, in parts from which the training process makes it again.

``pickle`` calls the class again with ``args``, so an exception whose constructor makes its message,
or takes several arguments, cannot be pickled, or says something else afterwards. Here the class is
sent by its name, and the object is made without a constructor and receives its arguments,
attributes, notes, cause and context, each as far as it can be pickled.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import pickle
import traceback
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dataporter.errors import SampleError, add_note
from dataporter.shared.pickling import dumps, reduced

__all__ = ["Raised", "put_together", "taken_apart"]

# How many exceptions are sent that are causes or parts one of the other. An exception may be the
# cause and an argument of the next, and is then sent twice.
_DEEPEST = 5
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class that is not built in
# Set by name below, or by Python. CPython leaves out the object of an AttributeError as well, which
# may be the dataset.
_NOT_MEMBERS = frozenset(
    {
        *("args", "__dict__", "__weakref__", "__traceback__", "__context__", "__cause__"),
        *("__suppress_context__", "AttributeError.obj", "BaseExceptionGroup.exceptions"),
    }
)
_ARGS: Any = vars(BaseException)["args"]  # which a class may have given another meaning
_GROUP: Any = getattr(builtins, "BaseExceptionGroup", ())  # since Python 3.11


@dataclass(frozen=True, slots=True)
class Raised:
    """An exception, taken apart.

    Attributes:
        kind: its class, pickled; None if that is found under no name.
        place: module, name and address of the class.
        shown: its type and message.
        whole: the exception, pickled, if its class says how to do that.
        args: pickled; of what cannot be pickled, its texts; of a group, only the message.
        attributes: of its ``__dict__``, notes included, pickled.
        members: of its slots and the like (``OSError.errno``), pickled, by class and name.
        inner: the exceptions of a group.
        cause, context: its ``__cause__``, and its ``__context__`` if that is another exception.
        is_caused: whether the context is the cause.
        is_alone: its ``__suppress_context__``.
        left_out: names of attributes that cannot be pickled.
    """

    kind: bytes | None
    place: tuple[str, str, int]
    shown: str
    whole: bytes | None
    args: tuple[bytes | _Texts, ...]
    attributes: dict[str, bytes]
    members: dict[str, bytes]
    inner: tuple[Raised, ...]
    cause: Raised | None
    context: Raised | None
    is_caused: bool
    is_alone: bool
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Texts:
    """Stands in the arguments of an exception for an object that cannot be pickled."""

    text: str
    representation: str

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return self.representation


# ---- in the worker


def taken_apart(error: BaseException, above: tuple[int, ...] = ()) -> Raised:
    """The parts of an exception, all of which can be pickled.

    Args:
        above: the addresses of the exceptions that this one is a part of.
    """
    kind, above, whole = type(error), (*above, id(error)), _packed_whole(error)
    arguments, inner = _ARGS.__get__(error), _inner(error)
    attributes, members = vars(error), _members(error)
    if whole is not None:
        # Notes are not its class's business.
        attributes = {name: value for name, value in attributes.items() if name == "__notes__"}
        arguments, members = (), {}
    if inner:
        arguments = arguments[:1]
    packed_attributes, lost = _packed_all(attributes, above)
    packed_members, lost_members = _packed_all(members, above)
    is_caused = error.__context__ is error.__cause__
    return Raised(
        kind=_packed(kind, above),
        place=(kind.__module__, kind.__qualname__, id(kind)),
        # Not str(error): an exception's own __str__ may raise.
        shown="".join(traceback.format_exception_only(error)).strip(),
        whole=whole,
        args=tuple(_packed(value, above) or _texts(value) for value in arguments),
        attributes=packed_attributes,
        members=packed_members,
        inner=tuple(taken_apart(each, above) for each in inner),
        cause=_cause(error.__cause__, above),
        context=None if is_caused else _cause(error.__context__, above),
        is_caused=is_caused,
        is_alone=error.__suppress_context__,
        left_out=(*lost, *lost_members),
    )


def _cause(cause: BaseException | None, above: tuple[int, ...]) -> Raised | None:
    if cause is None or id(cause) in above or len(above) > _DEEPEST:
        return None
    return taken_apart(cause, above)


def _packed_whole(error: BaseException) -> bytes | None:
    """Its pickle, if its class says how to pickle it, and that gives the same again."""
    if not any("__reduce__" in vars(base) or "__reduce_ex__" in vars(base) for base in _own(error)):
        return None
    try:
        whole = dumps(error)
        again = pickle.loads(whole)
        same = type(again) is type(error) and str(again) == str(error)
    except Exception:  # the user's class cannot: it is sent in parts
        return None
    return whole if same else None


def _packed_all(
    values: dict[str, Any], above: tuple[int, ...]
) -> tuple[dict[str, bytes], list[str]]:
    """The pickled values, and the names of those that cannot be pickled."""
    packed = {name: _packed(value, above) for name, value in values.items()}
    return (
        {name: data for name, data in packed.items() if data is not None},
        [name for name, data in packed.items() if data is None],
    )


def _packed(value: Any, above: tuple[int, ...]) -> bytes | None:
    try:
        buffer = io.BytesIO()
        _Pickler(buffer, above).dump(value)
        # Many objects can be pickled but not unpickled, so try both.
        pickle.loads(buffer.getvalue())
        return buffer.getvalue()
    except Exception:  # the user's object cannot: a note names it
        return None


class _Pickler(pickle.Pickler):
    """Takes exceptions apart that are among the arguments or attributes of others."""

    def __init__(self, buffer: io.BytesIO, above: tuple[int, ...]) -> None:
        super().__init__(buffer, pickle.HIGHEST_PROTOCOL)
        self._above = above

    def reducer_override(self, value: Any) -> Any:
        if not issubclass(type(value), BaseException):
            return reduced(value)
        if id(value) in self._above or len(self._above) > _DEEPEST:
            raise pickle.PicklingError("an exception is a part of itself, or a deep one of others")
        return put_together, (taken_apart(value, self._above),)


def _texts(value: Any) -> _Texts:
    texts = []
    for function in (str, repr):
        try:
            texts.append(function(value))
        except Exception:  # an object's own __str__ may raise
            texts.append(f"<{type(value).__qualname__}>")
    return _Texts(*texts)


def _members(error: BaseException) -> dict[str, Any]:
    """By class and name, what is stored in an exception beside its ``__dict__``, if it is set."""
    members = {}
    for name, descriptor in _descriptors(type(error)):
        with contextlib.suppress(Exception):  # it was never set
            members[name] = descriptor.__get__(error)
    # CPython leaves a name of None unset, and an OSError prints what was set, also to None.
    is_set = set()
    if isinstance(error, OSError) and OSError.__str__(error).startswith("[Errno "):
        is_set = {"OSError.errno", "OSError.strerror"}
    return {name: value for name, value in members.items() if value is not None or name in is_set}


def _descriptors(kind: type) -> Iterator[tuple[str, Any]]:
    for base in kind.__mro__:
        for name, descriptor in vars(base).items():
            full = f"{base.__qualname__}.{name}"
            if name in _NOT_MEMBERS or full in _NOT_MEMBERS:
                continue
            if isinstance(descriptor, types.MemberDescriptorType | types.GetSetDescriptorType):
                yield full, descriptor


def _inner(error: BaseException) -> tuple[BaseException, ...]:
    return error.exceptions if _GROUP and isinstance(error, _GROUP) else ()


def _own(error: BaseException) -> list[type]:
    """The classes of an exception that are not built in."""
    return [base for base in type(error).__mro__ if base.__flags__ & _HEAP_TYPE]


# ---- in the training process


def put_together(raised: Raised) -> BaseException:
    """The exception again; a ``SampleError`` that names it if that is not possible."""
    error = _made(raised)
    if error is None:
        error = SampleError(
            f"a worker raised {raised.shown}\n(the class {raised.place[1]} of the module "
            f"{raised.place[0]}, or an argument, is not found in this process, so the exception "
            "cannot be raised here itself; its traceback is above)"
        )
    attributes, lost = _unpacked_all(raised.attributes)
    vars(error).update(attributes)
    if lost := [*raised.left_out, *lost]:
        what = f"without {', '.join(lost)}, which cannot be pickled and stayed in the worker"
        add_note(error, what)
    cause = None if raised.cause is None else put_together(raised.cause)
    context = None if raised.context is None else put_together(raised.context)
    # A class may forbid assignments, as a frozen dataclass. A cause suppresses the context as well.
    BaseException.__setattr__(error, "__cause__", cause)
    BaseException.__setattr__(error, "__context__", cause if raised.is_caused else context)
    BaseException.__setattr__(error, "__suppress_context__", raised.is_alone)
    return error


def _made(raised: Raised) -> BaseException | None:
    kind = _kind(raised)
    if kind is None:
        return None
    try:
        if raised.whole is not None:
            whole: BaseException = pickle.loads(raised.whole)
            return whole
        args = [each if isinstance(each, _Texts) else pickle.loads(each) for each in raised.args]
    except Exception:  # only the worker has what it needs: a SampleError is raised instead
        return None
    error = _new(kind, raised, args)
    if error is None:
        return None
    members, _ = _unpacked_all(raised.members)
    for name, descriptor in _descriptors(kind):
        if name in members:
            with contextlib.suppress(AttributeError, TypeError):  # read-only
                descriptor.__set__(error, members[name])
    return error


def _new(kind: type[BaseException], raised: Raised, args: list[Any]) -> BaseException | None:
    """An exception made without the constructors of classes that are not built in."""
    bases: list[Any] = [base for base in kind.__mro__ if not base.__flags__ & _HEAP_TYPE]
    if raised.inner:
        args = [*args, [put_together(each) for each in raised.inner]]
    for base in bases:
        try:
            # A group takes its exceptions only here.
            error: BaseException = base.__new__(kind, *(args if raised.inner else ()))
        except TypeError:  # another built-in class decides how its objects are laid out
            continue
        _ARGS.__set__(error, tuple(args))
        return error
    return None


def _kind(raised: Raised) -> type[BaseException] | None:
    """The class: by its name, or that of a function, which forked workers have as well."""
    if raised.kind is not None:
        with contextlib.suppress(Exception):
            found: type[BaseException] = pickle.loads(raised.kind)
            return found
    module, name, address = raised.place
    named = [
        each
        for each in _all_subclasses(BaseException)
        if (each.__module__, each.__qualname__) == (module, name)
    ]
    return next((each for each in named if id(each) == address), named[-1] if named else None)


def _all_subclasses(kind: type[BaseException]) -> Iterator[type[BaseException]]:
    for each in type.__subclasses__(kind):
        yield each
        yield from _all_subclasses(each)


def _unpacked_all(values: dict[str, bytes]) -> tuple[dict[str, Any], list[str]]:
    unpacked, lost = {}, []
    for name, data in values.items():
        try:
            unpacked[name] = pickle.loads(data)
        except Exception:  # the user's object cannot: a note names it
            lost.append(name)
    return unpacked, lost
