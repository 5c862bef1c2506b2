"""`on_error=`: the reaction to a sample that fails, checked and made callable."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeAlias

from dataporter.checks import given, is_one_of
from dataporter.errors import ConfigurationError
from dataporter.fetch.failure import Failure

__all__ = ["OnError", "Substitute", "on_error_checked", "substitute_of"]

# A function takes (exception, index), or (exception, index, failure).
OnError: TypeAlias = Literal["raise", "skip", "replace"] | Callable[..., Any]
Substitute: TypeAlias = Callable[[Exception, Any, Failure], Any]

_EXPECTED = (
    "expected 'raise', 'skip', 'replace' or a function (exception, index) → sample, which may take "
    "the Failure as a third argument, or as failure="
)


def on_error_checked(name: str, on_error: Any) -> OnError:
    """The value of ``on_error=``, checked.

    Args:
        name: of the argument, for the message.

    Raises:
        ConfigurationError: (a ``ValueError``) it is none of the names, and no function that can be
            called with an exception and an index.
    """
    if is_one_of(on_error, "raise", "skip", "replace"):
        return on_error  # type: ignore[no-any-return]  # narrowed by value
    if not callable(on_error):
        raise ConfigurationError(f"{given(name, on_error)}: {_EXPECTED}")
    substitute_of(on_error)
    function: Callable[..., Any] = on_error
    return function


def substitute_of(function: Callable[..., Any]) -> Substitute:
    """The user's function, called with what it takes.

    It receives the failure if it has a parameter named ``failure``, or a third one without a
    default.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions written in C have none
        return partial(_without_failure, function)
    parameters = signature.parameters
    positional = [
        name
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    named = "failure" in parameters and "failure" not in positional[:2]
    if named and parameters["failure"].kind in _BY_KEYWORD:
        return _checked(signature, function, _with_keyword, None, None, failure=None)
    if len(positional) > 2 and parameters[positional[2]].default is inspect.Parameter.empty:
        return _checked(signature, function, _with_failure, None, None, None)
    return _checked(signature, function, _without_failure, None, None)


_BY_KEYWORD = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _checked(
    signature: inspect.Signature,
    function: Callable[..., Any],
    call: Callable[..., Any],
    *arguments: None,
    **named: None,
) -> Substitute:
    try:
        signature.bind(*arguments, **named)
    except TypeError as error:
        raise ConfigurationError(f"on_error={function!r} takes {signature}: {_EXPECTED}") from error
    return partial(call, function)


def _without_failure(
    function: Callable[..., Any], error: Exception, index: Any, failure: Failure
) -> Any:
    return function(error, index)


def _with_failure(
    function: Callable[..., Any], error: Exception, index: Any, failure: Failure
) -> Any:
    return function(error, index, failure)


def _with_keyword(
    function: Callable[..., Any], error: Exception, index: Any, failure: Failure
) -> Any:
    return function(error, index, failure=failure)
