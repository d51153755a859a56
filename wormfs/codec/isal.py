"""ISA-L's erasure code through ctypes, on caller's memory, without copies.

The library is the one bundled with the pyeclib wheel, else the system's libisal.so.2. Its
functions are those of <isa-l/erasure_code.h>. A ctypes foreign call releases the GIL, so
stripes can be coded on several threads at once.
"""

import ctypes
import ctypes.util
import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from wormfs.codec.buffers import Buffer, WritableBuffer

_TABLE_BYTES_PER_FACTOR: Final = 32
_PyBUF_SIMPLE: Final = 0
_PyBUF_WRITABLE: Final = 1


class _PyBuffer(ctypes.Structure):
    """CPython's Py_buffer (stable ABI since 3.11)."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = (ctypes.py_object, ctypes.c_void_p, ctypes.c_int)
_get_buffer.restype = ctypes.c_int
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = (ctypes.c_void_p,)
_release_buffer.restype = None
_VIEW_BYTES: Final = ctypes.sizeof(_PyBuffer)


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """Load ISA-L once; None when this machine has none that works."""
    for candidate in (*_bundled_paths(), "libisal.so.2"):
        try:
            loaded = ctypes.CDLL(str(candidate))
            _declare(loaded)
        except (OSError, AttributeError):
            continue
        return loaded
    return None


def _bundled_paths() -> list[Path]:
    spec = importlib.util.find_spec("pyeclib")
    if spec is None or spec.origin is None:
        return []
    site = Path(spec.origin).parent.parent
    return sorted((site / "pyeclib.libs").glob("libisal*.so*"))


def _declare(loaded: ctypes.CDLL) -> None:
    pointer, number = ctypes.c_void_p, ctypes.c_int
    signatures: dict[str, tuple[tuple[Any, ...], Any]] = {
        "gf_gen_cauchy1_matrix": ((pointer, number, number), None),
        "gf_invert_matrix": ((pointer, pointer, number), number),
        "ec_init_tables": ((number, number, pointer, pointer), None),
        "ec_encode_data": ((number, number, number, pointer, pointer, pointer), None),
    }
    for name, (arguments, result) in signatures.items():
        function = getattr(loaded, name)
        function.argtypes = arguments
        function.restype = result


def cauchy_matrix(k: int, m: int) -> bytes:
    """Return the (k + m) x k generator matrix of isa_l_rs_cauchy, row-major; its top is the identity."""
    matrix = ctypes.create_string_buffer((k + m) * k)
    _loaded().gf_gen_cauchy1_matrix(matrix, k + m, k)
    return matrix.raw


def invert(matrix: bytes, k: int) -> bytes:
    """Return the inverse of a k x k matrix. Any k rows of a Cauchy generator are invertible."""
    source = ctypes.create_string_buffer(matrix, k * k)
    inverse = ctypes.create_string_buffer(k * k)
    if _loaded().gf_invert_matrix(source, inverse, k) != 0:
        raise ArithmeticError("singular matrix")
    return inverse.raw


class Product:
    """Multiplies `rows` x k field factors with k buffers into `rows` buffers."""

    __slots__ = ("_encode", "_k", "_pointers_type", "_rows", "_tables", "_views_type")

    def __init__(self, matrix: bytes, k: int) -> None:
        self._k = k
        self._rows = len(matrix) // k
        self._tables = ctypes.create_string_buffer(_TABLE_BYTES_PER_FACTOR * k * self._rows)
        loaded = _loaded()
        loaded.ec_init_tables(k, self._rows, matrix, self._tables)
        self._encode = loaded.ec_encode_data
        self._views_type = _PyBuffer * (k + self._rows)
        self._pointers_type = ctypes.c_void_p * (k + self._rows)

    def run(self, inputs: Sequence[Buffer], outputs: Sequence[WritableBuffer], length_bytes: int) -> None:
        """Fill `outputs` from `inputs`, all contiguous and at least `length_bytes` long (not checked).

        Raises BufferError when memory is not contiguous or an output is read-only.
        """
        views = self._views_type()
        pointers = self._pointers_type()
        first_view = view = ctypes.addressof(views)
        k = self._k
        try:
            for buffer in inputs:
                _get_buffer(buffer, view, _PyBUF_SIMPLE)
                view += _VIEW_BYTES
            for buffer in outputs:
                _get_buffer(buffer, view, _PyBUF_WRITABLE)
                view += _VIEW_BYTES
            for position in range(k + self._rows):
                pointers[position] = views[position].buf
            base = ctypes.addressof(pointers)
            # The views are held during the call, so the memory can be neither freed nor resized.
            self._encode(length_bytes, k, self._rows, self._tables, base, base + k * 8)
        finally:
            while view > first_view:
                view -= _VIEW_BYTES
                _release_buffer(view)


def _loaded() -> ctypes.CDLL:
    loaded = library()
    if loaded is None:
        raise RuntimeError("ISA-L is not available; ask available_codecs() first")
    return loaded
