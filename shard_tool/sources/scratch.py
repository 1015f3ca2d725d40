"""Bytes that are kept on disk as long as an object lives, because they would fill the memory."""

import os
import tempfile

_BUFFER_BYTES = 1 << 18


class Scratch:
    """A temporary file without a name, which is appended to and read at any place; it goes with the process."""

    def __init__(self) -> None:
        self._file: int | None = None
        self._buffer = bytearray()
        self.size = 0

    def append(self, data: bytes) -> int:
        """Add `data`; returns where it begins."""
        offset = self.size
        self._buffer += data
        self.size += len(data)
        if len(self._buffer) >= _BUFFER_BYTES:
            self._flush()
        return offset

    def read(self, offset: int, size: int) -> bytes:
        """The `size` bytes from `offset`."""
        if not size:
            return b""
        if self._buffer:
            self._flush()
        assert self._file is not None, "there is a file as soon as there are bytes"
        return os.pread(self._file, size, offset)

    def _flush(self) -> None:
        if self._file is None:
            self._file, name = tempfile.mkstemp()
            os.unlink(name)
        view = memoryview(self._buffer)
        while view:
            view = view[os.write(self._file, view) :]
        view.release()
        self._buffer = bytearray()

    def __getstate__(self) -> bytes:
        return self.read(0, self.size)

    def __setstate__(self, state: bytes) -> None:
        self.__init__()  # type: ignore[misc]
        self.append(state)

    def __del__(self) -> None:
        if self.__dict__.get("_file") is not None:
            os.close(self.__dict__["_file"])
