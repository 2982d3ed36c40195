"""Feature files enter the same road as videos."""

import pytest
import torch
from safetensors.torch import save_file

from vidtune.contracts import MediaRef
from vidtune.media import MediaError, ProbeCache, probe, read_frames


def test_rows_of_a_feature_file_come_in_the_order_asked_for(tmp_path):
    values = torch.arange(20.0).view(5, 4)
    path = str(tmp_path / "clip.safetensors")
    save_file({"features": values}, path, metadata={"fps": "2.5"})
    info = probe(MediaRef(path, "audio"))
    assert (info.num_frames, info.fps, info.duration_s, info.width) == (5, 2.5, 2.0, 4)
    rows = list(read_frames(info.ref, [4, 0, 4], deadline_s=5.0))
    assert [row.tolist() for row in rows] == [values[i].tolist() for i in (4, 0, 4)]


def test_the_header_cache_keeps_the_kind_of_a_feature_file(tmp_path):
    path = str(tmp_path / "clip.safetensors")
    save_file({"features": torch.ones(3, 2)}, path)
    for _ in range(2):
        info = ProbeCache(tmp_path / "cache").probe(MediaRef(path, "audio"))
        assert (info.ref.kind, info.num_frames) == ("audio", 3)


@pytest.mark.parametrize("content", [b"not a tensor file", b""])
def test_a_damaged_feature_file_is_a_bad_medium_not_a_crash(tmp_path, content):
    path = tmp_path / "clip.safetensors"
    path.write_bytes(content)
    with pytest.raises(MediaError):
        probe(MediaRef(str(path), "audio"))


def test_a_file_of_weights_is_refused_as_features_with_what_it_holds(tmp_path):
    path = str(tmp_path / "clip.safetensors")
    save_file({"lm_head.weight": torch.ones(3, 2)}, path)
    with pytest.raises(MediaError, match=r"lm_head.weight.*features"):
        probe(MediaRef(path, "audio"))
