import itertools
import os
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.store.zeros import ZERO_BLOCK, Allocation, ZeroWriter, zero_runs

BLOCK = len(ZERO_BLOCK)
# Runs of one byte: zeros and others, about and across the borders of blocks.
PIECES = st.lists(
    st.tuples(
        st.sampled_from([b"\0", b"x"]),
        st.one_of(st.integers(1, 9), st.sampled_from([BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])),
    ).map(lambda run: run[0] * run[1]),
    max_size=8,
)


@pytest.mark.parametrize("allocation", Allocation)
@given(pieces=PIECES)
def test_what_is_written_is_what_was_given(allocation: Allocation, pieces: list[bytes]) -> None:
    with tempfile.TemporaryFile() as file:
        writer = ZeroWriter(file.fileno(), allocation)
        for piece in pieces:
            writer.write(piece)
        writer.flush()
        content = b"".join(pieces)
        assert os.pread(file.fileno(), len(content) + 1, 0) == content
        assert writer.size == len(content)
        is_sparse = allocation is Allocation.SPARSE
        holes = sum(last - first for first, last, is_zero in zero_runs(content) if is_zero) if is_sparse else 0
        assert writer.data == len(content) - holes


@given(pieces=PIECES, start=st.integers(0, BLOCK))
def test_runs_cover_the_bytes_once_and_in_order(pieces: list[bytes], start: int) -> None:
    data = bytes(start) + b"".join(pieces)
    runs = zero_runs(data, start, len(data))
    borders = [start, *(last for _, last, _ in runs)]
    assert [first for first, _, _ in runs] == borders[:-1]
    assert borders[-1] == len(data)
    assert all(not any(data[first:last]) and (last - first) % BLOCK == 0 for first, last, is_zero in runs if is_zero)
    assert all(one[2] != other[2] for one, other in itertools.pairwise(runs))
