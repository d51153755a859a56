"""What the codecs accept as memory: anything contiguous that speaks the buffer protocol."""

import mmap
from typing import TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview | mmap.mmap
WritableBuffer: TypeAlias = bytearray | memoryview | mmap.mmap


def length_of(buffer: Buffer) -> int:
    """Length in bytes (len() of a memoryview counts items)."""
    return buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)
