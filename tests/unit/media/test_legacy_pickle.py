"""Pickled feature files come in; anything else in a pickle stays out."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest

from vidtune.contracts import MediaRef
from vidtune.media import MediaError, probe, read_frames
from vidtune.media.legacy_pickle import convert_pickled_features, load_pickled_array

ARRAY = np.arange(12, dtype=np.float16).reshape(4, 3)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickled_array_is_read_as_it_is(tmp_path, protocol):
    file = tmp_path / "v_a.pkl"
    file.write_bytes(pickle.dumps(ARRAY, protocol=protocol))
    found = load_pickled_array(str(file))
    assert found.dtype == ARRAY.dtype and (found == ARRAY).all()


def test_files_of_numpy_1_are_read(tmp_path):
    """They name numpy.core, which numpy 2 calls numpy._core."""
    file = tmp_path / "v_a.pkl"
    modern = pickle.dumps(ARRAY, protocol=3)
    assert b"numpy._core.multiarray" in modern
    file.write_bytes(modern.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert (load_pickled_array(str(file)) == ARRAY).all()


def test_its_rows_come_like_frames(tmp_path):
    file = tmp_path / "v_a.pkl"
    file.write_bytes(pickle.dumps(ARRAY))
    info = probe(MediaRef(str(file)))
    assert (info.num_frames, info.height, info.width) == (4, 1, 3)
    assert [row.tolist() for row in read_frames(info.ref, [2, 0])] == [ARRAY[2].tolist(), ARRAY[0].tolist()]
    with pytest.raises(MediaError, match="row 4"):
        list(read_frames(info.ref, [4]))


class Evil:
    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: np.array([evil], dtype=object)])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, wrap):
    evil = Evil()
    evil.path = str(tmp_path / "pwned")
    file = tmp_path / "v_a.pkl"
    file.write_bytes(pickle.dumps(wrap(evil)))
    with pytest.raises(MediaError, match=r"no pickled array.*mkdir"):
        probe(MediaRef(str(file)))
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps([1, 2]), "holds list"),
        (pickle.dumps(ARRAY)[:40], "no pickled array"),
        (b"", "empty"),
        (b"a text file", "no pickled array"),
        (pickle.dumps(ARRAY[0]), r"holds float16 \(3,\)"),
        (pickle.dumps(np.array([["a"]])), "holds <U1"),
    ],
)
def test_damaged_and_foreign_files_are_bad_media(tmp_path, content, message):
    file = tmp_path / "v_a.pkl"
    file.write_bytes(content)
    with pytest.raises(MediaError, match=message) as error:
        probe(MediaRef(str(file)))
    assert "v_a.pkl" in str(error.value)


def test_conversion_writes_each_file_once_and_lists_the_bad_ones(tmp_path):
    source, target = tmp_path / "pkl", tmp_path / "out"
    source.mkdir()
    (source / "v_a.pkl").write_bytes(pickle.dumps(ARRAY))
    (source / "v_b.pkl").write_bytes(b"no pickle")
    written, refused = convert_pickled_features(source, target)
    assert written == 1 and [os.path.basename(error.path) for error in refused] == ["v_b.pkl"]
    rows = list(read_frames(MediaRef(str(target / "v_a.safetensors")), range(4)))
    assert np.array_equal(np.stack(rows), ARRAY)
    assert convert_pickled_features(source, target)[0] == 0
