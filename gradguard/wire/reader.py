"""Reading bytes that a stranger wrote: nothing is believed before it is checked."""

from __future__ import annotations

from gradguard.wire.errors import WireError

_VARINT_BYTES = 9  # 63 bits: a length always fits a signed integer of 64 bits


class Reader:
    """A position in a buffer that never moves past its end."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._at = data, 0

    @property
    def left(self) -> int:
        """Bytes not yet read."""
        return len(self._data) - self._at

    def take(self, size: int, *, what: str) -> memoryview:
        """The next ``size`` bytes, not copied."""
        if not 0 <= size <= self.left:
            raise WireError(f"{what} needs {size} bytes, and only {self.left} are left: truncated")
        self._at += size
        return self._data[self._at - size : self._at]

    def byte(self, *, what: str) -> int:
        return self.take(1, what=what)[0]

    def varint(self, *, what: str, most: int) -> int:
        """A number of at most ``most``: 7 bits a byte, low bits first, in as few as possible."""
        value = 0
        for place in range(_VARINT_BYTES):
            byte = self.byte(what=what)
            value |= (byte & 0x7F) << (7 * place)
            if byte < 0x80:
                if place and not byte:
                    raise WireError(f"{what} is written with more bytes than it needs")
                if value > most:
                    raise WireError(f"{what} must be at most {most}, got {value}")
                return value
        raise WireError(f"{what} must be written in at most {_VARINT_BYTES} bytes")

    def finish(self, *, what: str) -> None:
        """Refuse bytes that are left over."""
        if self.left:
            raise WireError(f"{self.left} bytes follow after {what}; none may")


def varint(value: int) -> bytes:
    """``value`` as :meth:`Reader.varint` reads it.

    >>> varint(5), varint(300)
    (b'\\x05', b'\\xac\\x02')
    """
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))
