"""Imports go one way: pyproject.toml's contracts hold it for rooms, and this for single modules."""

from __future__ import annotations

from graphlib import TopologicalSorter

import grimp

# Circles that are still to be cut, by the import that closes them.
KNOWN = {("dataporter.tools.verification.report", "dataporter.tools.verification.page")}


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = grimp.build_graph("dataporter", exclude_type_checking_imports=True, cache_dir=None)
    imports = {
        importer: [
            imported
            for imported in graph.find_modules_directly_imported_by(importer)
            if (importer, imported) not in KNOWN
        ]
        for importer in graph.modules
    }
    TopologicalSorter(imports).prepare()  # a CycleError names the circle
