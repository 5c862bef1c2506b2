"""Each look-up by frames names functions and variables that the installed framework has."""

from __future__ import annotations

import importlib
import inspect
from types import CodeType
from typing import Any

import pytest

from dataporter.integrations.callers import (
    ACCELERATE_COPIES,
    ACCELERATE_PREPARES,
    FABRIC_ITERATES,
    LOOKUPS,
    Lookup,
)

CASES = [
    (lookup, module, function)
    for lookup in LOOKUPS
    for module in lookup.modules
    for function in lookup.functions
]


def code_of(module: str, function: str) -> CodeType:
    found: Any = importlib.import_module(module)
    for name in function.split("."):
        found = getattr(found, name)
    code: CodeType = inspect.unwrap(found).__code__
    return code


@pytest.mark.parametrize(("lookup", "module", "function"), CASES)
def test_the_framework_has_the_function_and_its_variables(
    lookup: Lookup, module: str, function: str
) -> None:
    code = code_of(module, function)
    assert code.co_name == function.rpartition(".")[2]
    assert set(lookup.variables) <= {*code.co_varnames, *code.co_cellvars}


def names_in(code: CodeType) -> set[str]:
    """Names that a function reads, those of its comprehensions included."""
    inner = (names_in(part) for part in code.co_consts if isinstance(part, CodeType))
    return set(code.co_names).union(*inner)


def test_all_functions_of_accelerate_that_copy_a_loader_are_looked_up() -> None:
    (module,) = ACCELERATE_COPIES.modules
    accelerate: Any = importlib.import_module(module)
    copying = {
        name
        for name, function in vars(accelerate).items()
        if inspect.isfunction(function)
        and "_PYTORCH_DATALOADER_KWARGS" in names_in(function.__code__)
    }
    assert copying == set(ACCELERATE_COPIES.functions)
    assert "multiprocessing_context" in accelerate._PYTORCH_DATALOADER_KWARGS


def test_accelerator_asks_whether_a_loader_is_prepared_before_it_builds_another() -> None:
    (module,), (function,) = ACCELERATE_PREPARES.modules, ACCELERATE_PREPARES.functions
    code = code_of(module, function)
    assert "_is_accelerate_prepared" in code.co_consts
    names = list(code.co_names)
    assert names.index("_dataloaders") < names.index("prepare_data_loader")


@pytest.mark.parametrize("module", FABRIC_ITERATES.modules)
def test_fabrics_wrapper_sets_the_epoch_to_its_count_of_passes(module: str) -> None:
    (function,) = FABRIC_ITERATES.functions
    assert {"_set_sampler_epoch", "_num_iter_calls"} <= names_in(code_of(module, function))
