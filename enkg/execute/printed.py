"""What a program prints, as much of it as is worth keeping."""

KEPT = 65536
"""Bytes kept from the start of an output, and from its end."""


class Printed:
    """The first and the last bytes of a stream."""

    def __init__(self) -> None:
        self._first = bytearray()
        self._last = bytearray()
        self._dropped = 0

    def clear(self) -> None:
        if self._first:
            self._first.clear()
            self._last.clear()
            self._dropped = 0

    def add(self, data: bytes) -> None:
        room = KEPT - len(self._first)
        if room > 0:
            self._first += data[:room]
            data = data[room:]
        self._last += data
        if len(self._last) > 4 * KEPT:
            self._trim()

    def text(self) -> str:
        self._trim()
        gap = f"\n[{self._dropped} bytes left out]\n".encode() if self._dropped else b""
        return (self._first + gap + self._last).decode(errors="replace")

    def _trim(self) -> None:
        extra = len(self._last) - KEPT
        if extra > 0:
            del self._last[:extra]
            self._dropped += extra
