"""The integrations' docstrings run, and the guide names each integration."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

from dataporter import integrations

MODULES = [module.name for module in pkgutil.iter_modules(integrations.__path__)]
DOCUMENT = Path(__file__).parents[2] / "docs" / "frameworks.md"


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_in_docstrings_run(module: str) -> None:
    found = importlib.import_module(f"dataporter.integrations.{module}")
    assert doctest.testmod(found).failed == 0


def test_the_document_names_every_integration() -> None:
    named = set(re.findall(r"dataporter\.integrations\.(\w+)", DOCUMENT.read_text()))
    assert named == set(MODULES) - {"callers", "lightning_hooks"}
