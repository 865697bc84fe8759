"""A TCP port that stays ours until rank 0 listens on it."""

from __future__ import annotations

import socket


class ReservedPort:
    """Holds a port by binding without listening.

    On Linux a second socket may bind and listen on it when both set SO_REUSEADDR, as torch's TCPStore does, while the kernel hands
    it to nobody who asks for any free port. Raises OSError when the address is not of this machine.
    """

    def __init__(self, address: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((address, 0))
        except OSError:
            self._socket.close()
            raise
        self.number: int = self._socket.getsockname()[1]

    def close(self) -> None:
        self._socket.close()
