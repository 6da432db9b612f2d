"""systemd's notification protocol: datagrams of ``KEY=value`` to $NOTIFY_SOCKET (sd_notify(3))."""

from __future__ import annotations

import os
import socket


class Notifier:
    """Tells the service manager; does nothing when there is none."""

    def __init__(self, address: str | None = None) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "") if address is None else address

    def _send(self, message: str) -> None:
        if not self._address:
            return
        # "@" means the abstract namespace.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.sendto(message.encode(), address)

    def ready(self) -> None:
        """Whoever asks is answered from now on."""
        self._send("READY=1")

    def status(self, sentence: str) -> None:
        """One line for ``systemctl status``."""
        self._send("STATUS=" + sentence.replace("\n", " "))

    def alive(self) -> None:
        """The replicator gets on (WatchdogSec of its unit)."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """The replicator is ending."""
        self._send("STOPPING=1")
