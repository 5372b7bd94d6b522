"""Telling the service manager: sd_notify(3)'s protocol."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(message: str) -> None:
    """Send *message* (``READY=1``, ``STOPPING=1``) to ``NOTIFY_SOCKET``, if there is one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to,
    ):
        to.connect(address)
        to.send(message.encode())
