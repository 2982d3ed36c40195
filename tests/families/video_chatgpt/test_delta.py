"""Base + delta gives the released weights, and nothing half-written."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from vidtune.contracts import UserError
from vidtune.models.loading import stream_folder
from vidtune.models.video_chatgpt.delta import apply_delta


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
