"""Arrays as bytes: what NumPy writes is read, anything else refused."""

import io
import pickle
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from service.errors import ServiceError
from service.npy import read_snippets, write_array

HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3, 1), }"


def save(array, version=None):
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version)
    return file.getvalue()


def forge(header=HEADER, values=bytes(24), *, version=1, length=None):
    text = header if isinstance(header, bytes) else header.encode()
    size = len(text) if length is None else length
    return (
        b"\x93NUMPY" + bytes([version, 0]) + size.to_bytes(2 if version == 1 else 4, "little") + text + values
    )


@given(
    st.sampled_from(["<f4", "<f8", "<f2", "<i2"]).flatmap(
        lambda dtype: arrays(
            dtype,
            array_shapes(min_dims=3, max_dims=3, max_side=6),
            elements={"min_value": -1000, "max_value": 1000},
        )
    ),
    st.sampled_from([(1, 0), (2, 0), (3, 0)]),
    st.booleans(),
)
def test_what_numpy_writes(array, version, is_fortran):
    found = read_snippets(save(np.asfortranarray(array) if is_fortran else array, version))
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, array.astype(np.float32))


def test_no_snippets_are_snippets():
    assert read_snippets(save(np.zeros((0, 60, 4), np.float32))).shape == (0, 60, 4)


def test_written_and_read():
    array = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    np.testing.assert_array_equal(np.load(io.BytesIO(write_array(array)), allow_pickle=False), array)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "it does not begin as one"),
        (b"\x93NUMPY\x01", "it does not begin as one"),
        (pickle.dumps([1]), "it does not begin as one"),
        (forge(version=4), "it does not begin as one"),
        (forge(length=5000), "header of 5000 bytes is too long or cut short"),
        (forge(version=2, length=2**32 - 1), "header of 4294967295 bytes is too long"),
        (forge(HEADER[:20], b""), "its header cannot be read"),
        (forge("(" * 500, b""), "its header cannot be read"),
        (forge("-" * 1000 + "1", b""), "header"),
        (forge("__import__('os').abort()", b""), "its header cannot be read"),
        (forge(HEADER.encode("utf-16")), "its header cannot be read"),
        (forge("[1, 2]"), "not of a plain array"),
        (forge(HEADER.replace("'shape'", "'form'")), "not of a plain array"),
        (forge(HEADER.replace("}", "'more': 1}")), "not of a plain array"),
        (forge(HEADER.replace("False", "0")), "not of a plain array"),
        (forge(HEADER.replace("(2,", "(True,")), "not of a plain array"),
        (forge(HEADER.replace("(2, 3, 1)", "(-2, -3, 1)")), "not of a plain array"),
        (forge(HEADER.replace("'<f4'", "[('a', '<f4')]")), "not of a plain array"),
        (forge(HEADER.replace("<f4", "|O")), r"its dtype is '\|O'"),
        (forge(HEADER.replace("<f4", ">f4")), "its dtype is '>f4'"),
        (forge(HEADER.replace("<f4", "<c8")), "its dtype is '<c8'"),
        (forge(HEADER.replace("2, 3, 1", "2, 3")), r"its shape is \(2, 3\)"),
        (forge(HEADER.replace("2, 3, 1", f"{10**18}, 0, 0"), b""), r"its shape is \(10+, 0, 0\)"),
        (forge(HEADER.replace("2, 3, 1", f"{10**300}, 3, 1")), r"needs 120* bytes, but 24 follow"),
        (forge(values=bytes(23)), "needs 24 bytes, but 23 follow"),
        (forge(values=bytes(25)), "needs 24 bytes, but 25 follow"),
        (save(np.full((1, 2, 2), np.nan, np.float32)), "its largest value is nan"),
        (save(np.full((1, 2, 2), -np.inf)), "its largest value is inf"),
        (save(np.full((1, 2, 2), -1e300)), r"its largest value is 1e\+300, and the limit 1e\+06"),
    ],
    ids=str,
)
def test_what_is_refused(body, message):
    with pytest.raises(ServiceError, match=message) as caught:
        read_snippets(body)
    assert caught.value.status == 400


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes(body, is_near):
    with suppress(ServiceError):
        found = read_snippets(forge(body) if is_near else body)
        assert found.ndim == 3


@given(st.lists(st.tuples(st.integers(0, 150), st.integers(0, 255)), max_size=4), st.integers(0, 200))
def test_files_that_are_nearly_right(changes, length):
    body = bytearray(save(np.ones((2, 3, 1), np.float32)))
    for place, value in changes:
        body[place] = value
    with suppress(ServiceError):
        found = read_snippets(bytes(body[:length]) if length < 150 else bytes(body))
        assert found.nbytes <= 1000
        assert np.isfinite(found).all()
