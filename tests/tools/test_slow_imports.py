"""Imports: what takes long is imported once, unless that would change what is verified."""

from __future__ import annotations

import importlib
import random
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dataporter import verify
from dataporter.seeding.generators import isolated_generators
from dataporter.tools.verification import imports
from dataporter.tools.verification.factory import Factory
from dataporter.tools.verification.imports import Imports, watched
from dataporter.tools.verification.processes import Processes, Task

TRAIN = """
from dataporter import ResumableDataLoader

class Rows:
    def __len__(self):
        return 24

    def __getitem__(self, index):
        import slow_module_of_user
        return slow_module_of_user.value(index)

def make_loader():
    return ResumableDataLoader(Rows(), 4, shuffle=True, seed=1)
"""
SLOW = """
import time, pathlib
with pathlib.Path({log!r}).open("a") as log:
    log.write("imported\\n")
time.sleep(1.1)
{more}
def value(index):
    return index{shift}
"""


def written(folder: Path, more: str = "", shift: str = "") -> tuple[str, Path]:
    log = folder / "log"
    (folder / "train_slow.py").write_text(TRAIN)
    text = SLOW.format(log=str(log), more=more, shift=shift)
    (folder / "slow_module_of_user.py").write_text(text)
    return f"{folder / 'train_slow.py'}:make_loader", log


@pytest.mark.slow
@pytest.mark.parametrize("workers", [[0, 1], [1]])
def test_a_slow_import_is_done_once_for_each_host(tmp_path: Path, workers: list[int]) -> None:
    target, log = written(tmp_path)
    report = verify(target, workers=workers, measure=False)
    assert report.exact, str(report)
    assert len(report.cases) > 9
    # The first run (in workers: once an epoch, and once more to see what they import), and three
    # hosts.
    assert len(log.read_text().splitlines()) == (4 if workers[0] == 0 else 6)


@pytest.mark.slow
def test_a_fault_of_a_module_that_is_shared_is_found_and_explained(tmp_path: Path) -> None:
    more, shift = "import random\nSHIFT = random.Random().random()", " + SHIFT"
    report = verify(written(tmp_path, more, shift)[0], workers=[0], measure=False)
    assert report.verdict == "not exact"
    (diagnosis,) = report.diagnoses
    assert diagnosis.cause.startswith("fresh randomness")


EFFECTS = {
    "none": "",
    "an open file": "FILE = open(__file__)",
    "a thread": "import threading\nthreading.Thread(target=time.sleep, args=(0.3,)).start()",
    "random": "import random\nrandom.seed(1)",
    "numpy": "import numpy\nnumpy.random.seed(1)",
    "torch": "import torch\ntorch.manual_seed(1)",
}


@pytest.mark.parametrize("effect", EFFECTS)
@pytest.mark.parametrize("where", ["{name}", "{name}.inner", "{name}.package"])
def test_a_module_whose_import_has_effects_is_not_shared(
    effect: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(imports, "_SLOW", 0.05)
    name = f"pkg_{abs(hash((effect, where)))}"
    slow, text = where.format(name=name), f"import time\ntime.sleep(0.06)\n{EFFECTS[effect]}\n"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "inner.py").write_text(text if where == "{name}.inner" else "")
    (folder / "package.py").write_text("import time\ntime.sleep(0.06)")
    (folder / "__init__.py").write_text("" if where == "{name}.inner" else text)
    found = Imports()
    before, threads = set(sys.modules), set(threading.enumerate())
    # As in a new process.
    random.seed()
    np.random.seed()
    torch.seed()
    with isolated_generators(), watched(Factory("make", "another:make"), found):
        importlib.import_module(slow)
    for thread in set(threading.enumerate()) - threads:
        thread.join()
    names = {name for name, _ in found.slow}
    assert (slow in names) == (effect == "none")
    assert {root for _, root in found.slow} <= {str(tmp_path)}
    for added in set(sys.modules) - before:
        if added.startswith("pkg_"):
            del sys.modules[added]


def test_the_loaders_own_module_is_not_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(imports, "_SLOW", 0.0)
    (tmp_path / "own_module_of_user.py").write_text("import other_module_of_user")
    (tmp_path / "other_module_of_user.py").write_text("")
    found = Imports()
    with watched(Factory("make", "own_module_of_user:make"), found):
        importlib.import_module("own_module_of_user")
    assert found.slow == (("other_module_of_user", str(tmp_path)),)


def test_a_module_of_an_installed_library_is_shared_in_any_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataporter.tools.verification import reachable

    site = tmp_path / "dist-packages"
    site.mkdir()
    (site / "library_of_debian.py").write_text("")
    monkeypatch.syspath_prepend(str(site))
    reachable._libraries.cache_clear()
    try:
        found = Imports()
        with watched(Factory("make", "another:make"), found):
            importlib.import_module("library_of_debian")
    finally:
        reachable._libraries.cache_clear()
    assert "library_of_debian" in found.libraries


def test_an_import_that_fails_is_tried_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    log = tmp_path / "log"
    text = f"open({str(log)!r}, 'a').write('x')\nraise RuntimeError"
    (tmp_path / "failing_library.py").write_text(text)
    imports.share(["failing_library"])
    imports.share(["failing_library"])
    assert log.read_text() == "x"


def test_forks_of_this_process_find_libraries_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "library_for_forks.py").write_text("")
    with Processes(forked=True) as processes:
        processes.share(Imports(libraries=("library_for_forks",)))
    assert "library_for_forks" in sys.modules


def test_experiments_run_where_no_module_of_the_user_is_shared() -> None:
    def nothing() -> Any:
        return None

    processes = Processes(forked=False)
    fresh = Task(nothing, "one/other environment", 1, is_fresh=True)
    assert processes._name_of(fresh) == fresh.host
    processes.share(Imports(slow=(("slow", "/somewhere"),)))
    assert processes._name_of(fresh) == "one/other environment/fresh one other environment"
    assert processes._name_of(Task(nothing, "one", 1)) == "one"
