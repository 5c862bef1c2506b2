"""The matrix: import, demo and the short suite with the versions that `matrix.toml` names.

Run it by `make matrix`, or for one Python by `make matrix PYTHONS=3.13`. A Python that is not on
this machine is left out. Behind `--`, `nox` takes arguments of pytest.
"""

import os
import shutil
import subprocess

import nox

nox.needs_version = ">=2025.5"
nox.options.default_venv_backend = "uv"
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False
nox.options.stop_on_first_error = False

ROWS = nox.project.load_toml("matrix.toml")["row"]
FOUND = (
    "import sys, datasets, numpy, torch; from dataporter import *; "
    "print('Python', sys.version.split()[0], *(f'{one.__name__} {one.__version__}' "
    "for one in (torch, numpy, datasets)), sep=', ')"
)

# pyenv's commands find a Python only if it is selected.
if shutil.which("pyenv") and "PYENV_VERSION" not in os.environ:
    listed = subprocess.run(["pyenv", "versions", "--bare"], capture_output=True, text=True)
    os.environ["PYENV_VERSION"] = ":".join(reversed(listed.stdout.split()))
# Wheels that lie on disk for pip, such as torch without CUDA, are there for uv as well.
if "PIP_FIND_LINKS" in os.environ:
    os.environ.setdefault("UV_FIND_LINKS", os.environ["PIP_FIND_LINKS"])


@nox.session
@nox.parametrize(
    ["python", "packages"],
    [(row["python"], row["packages"]) for row in ROWS],
    ids=[row["python"] for row in ROWS],
)
def matrix(session: nox.Session, packages: list[str]) -> None:
    """Import the package, run the demo, and run the tests that are not slow."""
    session.install("-e", ".[examples,dev]", *packages)
    session.run("python", "-c", FOUND)
    with session.chdir(session.create_tmp()):
        session.run("dataporter", "demo")
    session.run("python", "-m", "pytest", "-m", "not slow", *session.posargs)
