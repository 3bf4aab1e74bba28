"""What can go wrong between a device and its server, by what the device does about it."""

from __future__ import annotations


class Refused(RuntimeError):
    """The server will not let this device in, whatever it tries; the text is one line."""


class UnknownNode(Refused):
    """The server does not know this node, or not any more."""


class Away(Exception):
    """The server cannot be reached now, or is busy. Try again later.

    Args:
        reason: one line.
        wait: seconds that the server asks for, at least; 0 if it does not.
        in_handshake: the connection ended before it was secure.
    """

    def __init__(self, reason: str, *, wait: float = 0.0, in_handshake: bool = False) -> None:
        super().__init__(reason)
        self.wait = wait
        self.in_handshake = in_handshake


class RunEnded(Exception):
    """The run that a message belongs to takes no more replies."""


class Rejected(ValueError):
    """The server does not take this request, as it is; another one it may."""
