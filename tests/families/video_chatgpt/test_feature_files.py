"""The original's feature files come in; anything else in a pickle stays out."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch

from vidtune.contracts import UserError
from vidtune.models.video_chatgpt.feature_files import convert_feature_files, load_feature_file

ARRAY = np.arange(12, dtype=np.float16).reshape(4, 3)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickled_array_is_read_as_it_is(tmp_path, protocol):
    file = tmp_path / "v_a.pkl"
    file.write_bytes(pickle.dumps(ARRAY, protocol=protocol))
    assert torch.equal(load_feature_file(file, 4, 3), torch.from_numpy(ARRAY))


def test_files_of_numpy_1_are_read(tmp_path):
    """They name numpy.core, which numpy 2 calls numpy._core."""
    file = tmp_path / "v_a.pkl"
    modern = pickle.dumps(ARRAY, protocol=3)
    assert b"numpy._core.multiarray" in modern
    file.write_bytes(modern.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert torch.equal(load_feature_file(file, 4, 3), torch.from_numpy(ARRAY))


class Evil:
    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: np.array([evil], dtype=object)])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, wrap):
    evil = Evil()
    evil.path = str(tmp_path / "pwned")
    file = tmp_path / "v_a.pkl"
    file.write_bytes(pickle.dumps(wrap(evil)))
    with pytest.raises(UserError, match="not a feature file"):
        load_feature_file(file, 4, 3)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps([1, 2]), "holds a list"),
        (pickle.dumps(ARRAY)[:40], "not a feature file"),
        (b"", "not a feature file"),
        (pickle.dumps(ARRAY.T), "another model"),
        (pickle.dumps(ARRAY.astype(np.float32)), "another model"),
        (pickle.dumps(np.array(["a"])), "not a feature file|another model"),
    ],
)
def test_damaged_and_foreign_files_are_named(tmp_path, content, message):
    file = tmp_path / "v_a.pkl"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        load_feature_file(file, 4, 3)
    assert "v_a.pkl" in str(error.value)


def test_conversion_writes_each_file_once_and_lists_the_bad_ones(tmp_path):
    source, target = tmp_path / "pkl", tmp_path / "out"
    source.mkdir()
    (source / "v_a.pkl").write_bytes(pickle.dumps(ARRAY))
    (source / "v_b.pkl").write_bytes(b"no pickle")
    written, refused = convert_feature_files(source, target, 4, 3)
    assert written == 1 and len(refused) == 1 and "v_b.pkl" in refused[0]
    assert torch.equal(load_feature_file(target / "v_a.safetensors", 4, 3), torch.from_numpy(ARRAY))
    assert convert_feature_files(source, target, 4, 3)[0] == 0
