"""Forks: the server of `multiprocessing` that a forked process inherits, and must not use."""

from __future__ import annotations

import os
from multiprocessing import forkserver
from typing import Any

__all__ = ["renew_server"]

# What all workers import first, which takes longer than all the rest.
_PRELOADED = ("torch", "dataporter.loader.loader")


def renew_server() -> None:
    """Let this fork start its own server for workers, which imports torch and this package once.

    A fork inherits the record of its parent's server, and raises ``ChildProcessError`` when it
    looks whether that still runs. There is no published way to forget a server. A process that
    calls this once leaves its forks nothing to do, so that their memory stays laid out alike: the
    addresses of objects tell a cause.
    """
    server: Any = forkserver._forkserver
    if server._forkserver_alive_fd is None and {*_PRELOADED} <= {*server._preload_modules}:
        return
    preloaded = dict.fromkeys((*server._preload_modules, *_PRELOADED))
    if server._forkserver_alive_fd is not None:
        os.close(server._forkserver_alive_fd)
    # In place: multiprocessing has bound its methods.
    server.__init__()
    server.set_forkserver_preload(list(preloaded))
