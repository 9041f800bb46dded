"""Snippets as the bytes of a ``.npy`` file, from callers that nobody vouches for."""

import ast
import io
import math
from typing import Any

import numpy as np

from service.errors import ServiceError

MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 1024
"""NumPy writes 118 for three axes."""
DTYPES = {name: np.dtype(name) for name in ("<f4", "<f8", "<f2", "<i2")}
MAX_VALUE = 1e6
"""Noise units; beyond any signal, and far from where float32 ends."""
_LENGTH_BYTES = {(1, 0): 2, (2, 0): 4, (3, 0): 4}
_KEYS = {"descr", "fortran_order", "shape"}


def read_snippets(body: bytes) -> np.ndarray:
    """Snippets of the shape (n, n_samples, n_channels) from a ``.npy`` file.

    Parameters
    ----------
    body : bytes
        The whole file: float32, float64, float16 or int16, little-endian.

    Returns
    -------
    ndarray of shape (n, n_samples, n_channels), float32

    Raises
    ------
    ServiceError
        400 if it is anything else, or holds what is not finite or beyond 1e6.

    Notes
    -----
    The shape is checked against the length of the file before anything is made of it. Nothing is unpickled.
    """
    header, start = _read_header(body)
    dtype, shape = DTYPES.get(header["descr"]), header["shape"]
    if dtype is None:
        raise _refuse(f"its dtype is {header['descr']!r}", "Send little-endian float32 ('<f4')")
    if len(shape) != 3 or shape[1] < 1 or shape[2] < 1:
        raise _refuse(f"its shape is {shape}", "Send (number, samples, channels)")
    expected, found = math.prod(shape) * dtype.itemsize, len(body) - start
    if expected != found:
        raise _refuse(f"its shape {shape} needs {expected} bytes, but {found} follow", "Send the whole file")
    values = np.frombuffer(body, dtype=dtype, offset=start)
    values = values.reshape(shape, order="F" if header["fortran_order"] else "C")
    largest = max(float(values.max(initial=0)), -float(values.min(initial=0)))
    if not largest <= MAX_VALUE:  # nor with NaN
        raise _refuse(
            f"its largest value is {largest:g}, and the limit {MAX_VALUE:g}",
            "Send finite values, in units of the noise",
        )
    return np.ascontiguousarray(values, dtype=np.float32)


def write_array(array: np.ndarray) -> bytes:
    """An array as the bytes of a ``.npy`` file."""
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=False)
    return file.getvalue()


def _read_header(body: bytes) -> tuple[dict[str, Any], int]:
    """What a ``.npy`` file says of itself, and where its values begin."""
    width = _LENGTH_BYTES.get((body[6], body[7])) if len(body) >= 8 and body.startswith(MAGIC) else None
    if width is None:
        raise _refuse("it does not begin as one", "Make it with numpy.save")
    length = int.from_bytes(body[8 : 8 + width], "little")
    start = 8 + width + length
    if length > MAX_HEADER_BYTES or start > len(body):
        raise _refuse(f"its header of {length} bytes is too long or cut short", "Make it with numpy.save")
    try:
        header = ast.literal_eval(body[8 + width : start].decode("ascii"))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise _refuse("its header cannot be read", "Make it with numpy.save") from error
    is_known = (
        isinstance(header, dict)
        and header.keys() == _KEYS
        and isinstance(header["descr"], str)
        and isinstance(header["fortran_order"], bool)
        and isinstance(header["shape"], tuple)
        and all(type(size) is int and size >= 0 for size in header["shape"])
    )
    if not is_known:
        raise _refuse("its header is not of a plain array", "Make it with numpy.save")
    return header, start


def _refuse(why: str, remedy: str) -> ServiceError:
    return ServiceError(400, f"The body is no .npy file of snippets: {why}. {remedy}.")
