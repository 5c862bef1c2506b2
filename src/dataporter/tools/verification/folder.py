"""The folder of a verification, which disappears however the verification ends."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["Folder"]

_SECONDS_TO_TIDY = 10
_KEEPER = "import shutil, sys; sys.stdin.read(); shutil.rmtree(sys.argv[1], ignore_errors=True)"


class Folder:
    """A temporary folder, removed at the end of the ``with`` block or of the process.

    A signal that ends this process leaves it no time to tidy up. So another process waits for that
    end, which it sees as the end of its input, and removes what is left.
    """

    def __enter__(self) -> Path:
        # An interrupted task may still write to it: the keeper removes that.
        self._directory = tempfile.TemporaryDirectory(
            prefix="dataporter-verify-", ignore_cleanup_errors=True
        )
        self._keeper = subprocess.Popen(
            # No site packages, which take long to set up.
            [sys.executable, "-I", "-S", "-c", _KEEPER, self._directory.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # out of reach of Ctrl-C
        )
        return Path(self._directory.name)

    def __exit__(self, *exception: object) -> None:
        self._directory.cleanup()
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        try:
            self._keeper.wait(_SECONDS_TO_TIDY)
        except subprocess.TimeoutExpired:  # a process that a dataset has started holds its input
            self._keeper.kill()
            self._keeper.wait()
