"""The Dagster UI and daemon on the store, on this machine's own address only."""

from __future__ import annotations

import os
import socket
import sys

from assets.resources import REPOSITORY, store_root
from pipelines.errors import InputError
from pipelines.store import Store

HOST = "127.0.0.1"
"""Dagster's UI has no login: whoever reaches the port can run code."""


def serve(port: int) -> int:
    """Replace this process by webserver and daemon; raises `InputError` when the port is taken."""
    insist_on_free(port)
    store = Store.open(store_root())
    (store.root / "dagster").mkdir(exist_ok=True)
    print(f"Dagster UI on http://{HOST}:{port} (store {store.root}); Ctrl-C ends it", flush=True)
    command = [
        sys.executable, "-m", "dagster", "dev", "--workspace", str(REPOSITORY / "workspace.yaml"), "--host", HOST,
        "--port", str(port),
    ]  # fmt: skip
    os.execv(sys.executable, command)


def insist_on_free(port: int) -> None:
    """Raise `InputError` unless `port` can be bound on the loopback address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise InputError(
                f"port {port} cannot be used", expected=f"a free port on {HOST}", found=str(error),
                remedy=f"choose another one: make ui PORT={port + 1 if 1024 <= port < 65535 else 3001}",
            ) from error  # fmt: skip
