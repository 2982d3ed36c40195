"""Base + delta gives the released weights, and nothing half-written."""

from __future__ import annotations

import gc
import json
import pickle
import shutil

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vidtune.commands.main import main as vidtune
from vidtune.contracts import UserError
from vidtune.models.delta import apply_delta
from vidtune.models.loading import stream_folder
from vidtune.models.video_chatgpt.tiny import write_tiny_checkpoint
from vidtune.models.video_chatgpt.weights import build_network, load_weights


def test_sum_is_the_originals_bit_by_bit(case):
    expected = case.tensors("expected/delta_applied.safetensors")
    found = dict(stream_folder(case.llava))
    assert {name for name in expected if not name.endswith("rotary_emb.inv_freq")} == set(found)
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype and torch.equal(tensor, expected[name]), name


def test_no_shard_exceeds_the_bound_unless_one_tensor_does(case):
    shards = [load_file(file) for file in sorted(case.llava.glob("*.safetensors"))]
    assert len(shards) > 1
    for shard in shards:
        assert len(shard) == 1 or sum(tensor.nbytes for tensor in shard.values()) <= 50_000
    assert (case.llava / "tokenizer.model").read_bytes() == (case.delta / "tokenizer.model").read_bytes()


@pytest.fixture
def pair(tmp_path):
    """A base and its delta, as small as the rules allow, and a function that rewrites one of them."""
    base = {"model.embed_tokens.weight": torch.ones(4, 2), "model.norm.weight": torch.ones(2)}
    delta = {
        "model.embed_tokens.weight": torch.ones(6, 2),
        "model.norm.weight": torch.ones(2),
        "model.mm_projector.bias": torch.ones(2),
    }

    def write(name, tensors):
        (tmp_path / name).mkdir(exist_ok=True)
        save_file({key: tensor.half() for key, tensor in tensors.items()}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": name}))
        return tmp_path / name

    return write("base", base), write("delta", delta), tmp_path / "out", write, base, delta


def test_larger_embedding_takes_the_base_into_its_first_rows(pair):
    base, delta, out, *_ = pair
    assert apply_delta(base, delta, out) == 3
    found = dict(stream_folder(out))
    assert found["model.embed_tokens.weight"].tolist() == [[2.0, 2.0]] * 4 + [[1.0, 1.0]] * 2
    assert found["model.mm_projector.bias"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda base, delta: base.update({"model.norm.weight": torch.ones(3)}), "different models"),
        (lambda base, delta: base.update({"model.embed_tokens.weight": torch.ones(7, 2)}), "different models"),
        (lambda base, delta: base.update({"extra": torch.ones(1)}), "lacks 1 tensors"),
        (lambda base, delta: delta.update({"extra": torch.ones(1)}), "not in the base"),
    ],
)
def test_a_pair_that_does_not_belong_together_is_refused_and_leaves_nothing(pair, change, message):
    base_folder, delta_folder, out, write, base, delta = pair
    change(base, delta)
    write("base", base)
    write("delta", delta)
    with pytest.raises(UserError, match=message):
        apply_delta(base_folder, delta_folder, out)
    assert sorted(path.name for path in out.parent.iterdir()) == ["base", "delta"]


def test_metas_own_files_are_refused_with_the_command_that_converts_them(pair):
    base, delta, out, *_ = pair
    (base / "params.json").write_text("{}")
    with pytest.raises(UserError, match=r"convert_llama_weights_to_hf --input_dir .* --output_dir"):
        apply_delta(base, delta, out)


def test_an_existing_folder_is_not_overwritten(pair):
    base, delta, out, *_ = pair
    out.mkdir()
    with pytest.raises(UserError, match="exists already"):
        apply_delta(base, delta, out)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """(tiny LLaVA folder, a base and a delta that add up to it; both sharded)."""
    root = tmp_path_factory.mktemp("released")
    whole = root / "llava"
    write_tiny_checkpoint(whole)
    state = {name: tensor.half() for name, tensor in load_file(whole / "model.safetensors").items()}
    generator = torch.Generator().manual_seed(0)
    base, delta = {}, {}
    for name, tensor in state.items():
        if "mm_projector" in name:
            delta[name] = tensor
            continue
        rows = 450 if name in ("model.embed_tokens.weight", "lm_head.weight") else len(tensor)
        base[name] = torch.randn(tensor[:rows].shape, generator=generator).half()
        delta[name] = tensor.clone()
        delta[name][:rows] -= base[name]
    for folder, tensors in ((root / "base", base), (root / "delta", delta)):
        folder.mkdir()
        names = sorted(tensors)
        weight_map = {name: f"part-{number % 3}.safetensors" for number, name in enumerate(names)}
        for file in set(weight_map.values()):
            save_file({name: tensors[name] for name in names if weight_map[name] == file}, folder / file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name in ("config.json", "tokenizer.model", "added_tokens.json"):
        shutil.copy(whole / name, root / "delta")
    return whole, root / "base", root / "delta"


def test_one_command_makes_a_folder_that_model_path_takes(released, tmp_path, monkeypatch, capsys):
    whole, base, delta = released
    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name: asked.append(name) or str(delta))
    out = tmp_path / "llava"
    words = ["convert", "delta", "--base", str(base), "--delta", "liuhaotian/a-delta", "--out", str(out)]
    assert vidtune(words) == 0
    assert asked == ["liuhaotian/a-delta"] and str(out) in capsys.readouterr().out
    state = load_file(whole / "model.safetensors")
    found = dict(stream_folder(out))
    assert found.keys() == state.keys()
    # Both sides and the sum are rounded to half precision.
    assert all(torch.allclose(found[name].float(), state[name], atol=4e-3) for name in state)
    network = build_network(str(out), str(whole / "clip"))
    load_weights(network, str(out), str(whole / "clip"))


def test_metas_own_files_and_wrong_folders_end_the_command_with_what_to_do(released, tmp_path, capsys):
    delta = released[2]
    meta = tmp_path / "meta"
    meta.mkdir()
    (meta / "params.json").write_text("{}")
    for folder, expected in ((meta, "convert_llama_weights_to_hf --input_dir"), (tmp_path / "none", "--base=")):
        words = ["convert", "delta", "--base", str(folder), "--delta", str(delta), "--out", str(tmp_path / "out")]
        assert vidtune(words) == 1
        assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_more_than_one_written_file_is_ever_in_memory(tmp_path):
    """64 tensors of 128 KiB, 8 MiB in all, written in files of 1 MiB."""
    for folder in ("base", "delta"):
        (tmp_path / folder).mkdir()
        tensors = {f"model.layers.{n}.weight": torch.ones(256, 256).half() for n in range(64)}
        save_file(tensors, tmp_path / folder / "model.safetensors")
        del tensors
    gc.collect()

    def alive() -> int:
        # Of this very type: what other tests left behind may have no size.
        return sum(item.nbytes for item in gc.get_objects() if type(item) is torch.Tensor)

    before, seen = alive(), []
    count = apply_delta(
        tmp_path / "base",
        tmp_path / "delta",
        tmp_path / "out",
        max_shard_bytes=2**20,
        progress=lambda name: seen.append(alive() - before),
    )
    assert count == len(seen) == 64
    # The file that is being filled, and base, difference and sum of the tensor at hand.
    assert 2**19 < max(seen) <= 2**20 + 4 * 2**17
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 8


def test_pickled_features_are_converted_once_and_refused_files_are_named(tmp_path, capsys):
    source, out = tmp_path / "pkl", tmp_path / "features"
    source.mkdir()
    array = np.arange(12, dtype=np.float16).reshape(4, 3)
    (source / "v_a.pkl").write_bytes(pickle.dumps(array))
    words = ["convert", "features", "--source", str(source), "--out", str(out)]
    assert vidtune(words) == 0
    assert load_file(out / "v_a.safetensors")["features"].numpy().tolist() == array.tolist()
    (source / "v_b.pkl").write_bytes(pickle.dumps(print))
    assert vidtune(words) == 1
    assert "0 files written" in (shown := capsys.readouterr().out) and "v_b.pkl" in shown
