"""Checkpoints: names, packed projections, round trip, full size, refusals."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.families.internvideo25.support import each_case, golden, network_of
from vidtune.contracts import UserError
from vidtune.models.internvideo25.config import FULL_SIZE
from vidtune.models.internvideo25.weights import (
    build_from_config,
    build_network,
    export_weights,
    key_table,
    load_weights,
    merge_wqkv,
)


@each_case
def test_packed_projections_are_cut_as_the_original_views_them(case):
    files, network = golden(case), network_of(case)
    attention = network.language.model.layers[0].self_attn
    for part in "qkv":
        found = getattr(attention, f"{part}_proj").weight
        assert torch.equal(found.detach(), files.expected[f"wqkv_split.{part}"])
    parts = [files.expected[f"wqkv_split.{part}"] for part in "qkv"]
    packed = files.tensors("model.safetensors")["language_model.model.layers.0.attention.wqkv.weight"]
    assert torch.equal(merge_wqkv(*parts, network.language.config), packed)


@each_case
def test_an_export_is_the_checkpoint_bit_for_bit(case, tmp_path):
    export_weights(network_of(case), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == golden(case).config
    original, exported = load_file(case / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert original.keys() == exported.keys()
    assert all(torch.equal(original[name], exported[name]) for name in original)
    report = load_weights(build_network(str(tmp_path)), str(tmp_path))
    assert report.loaded == len(network_of(case).state_dict())


@each_case
def test_a_half_precision_network_holds_the_rounded_weights(case):
    network = build_network(str(case), dtype="bfloat16")
    load_weights(network, str(case))
    assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}
    exact = dict(network_of(case).named_parameters())
    assert all(torch.equal(p, exact[name].bfloat16()) for name, p in network.named_parameters())


def test_full_size_facts():
    """Counts of the published checkpoint (573 tensors, 16,150,845,440 bytes in bfloat16), on the meta device."""
    with torch.device("meta"):
        network = build_from_config(dtype="bfloat16")
    counts = {
        role: sum(parameter.numel() for parameter in getattr(network, role).parameters())
        for role in ("vision", "connector", "language")
    }
    assert counts == {"vision": 304_012_288, "connector": 33_570_816, "language": 7_737_839_616}
    assert sum(counts.values()) == 8_075_422_720
    ours = network.state_dict()
    table = key_table(network.language.config)
    theirs = dict(table.to_theirs(ours.items()))
    assert (len(theirs), len(ours)) == (573, 733)
    assert sum(2 * tensor.numel() for tensor in theirs.values()) == 16_150_845_440
    assert theirs["language_model.model.layers.31.attention.wqkv.weight"].shape == (6144, 4096)
    assert theirs["vision_model.encoder.layers.23.attn.qkv.bias"].shape == (3072,)
    back = dict(table.to_ours(theirs.items()))
    assert {name: tensor.shape for name, tensor in back.items()} == {name: t.shape for name, t in ours.items()}


def _broken_copy(case, folder, **changes):
    """A case's checkpoint with other config fields (``section__field``) or without a tensor (``without``)."""
    shutil.copytree(case, folder, dirs_exist_ok=True)
    folder.chmod(0o755)
    config, tensors = golden(case).config, load_file(case / "model.safetensors")
    config = json.loads(json.dumps(config))
    for name, value in changes.items():
        if name == "without":
            del tensors[value]
        else:
            section, _, field = name.rpartition("__")
            (config[section] if section else config)[field] = value
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return str(folder)


@each_case
@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"llm_config__architectures": ["Qwen2ForCausalLM"]}, "Qwen2ForCausalLM"),
        ({"ps_version": "v1"}, "ps_version='v1'"),
        ({"vision_config__qk_normalization": True}, "qk_normalization=True"),
    ],
)
def test_a_checkpoint_of_another_internvl_is_refused(case, tmp_path, changes, found):
    with pytest.raises(UserError, match=f"(?s){found}.*model.path"):
        build_network(_broken_copy(case, tmp_path, **changes))


@each_case
def test_a_missing_tensor_is_named(case, tmp_path):
    path = _broken_copy(case, tmp_path, without="mlp1.1.weight")
    with pytest.raises(UserError, match=r"1 missing: connector\.linear_1\.weight"):
        load_weights(build_network(path), path)


@each_case
def test_a_folder_that_is_no_checkpoint_says_so(case, tmp_path):
    with pytest.raises(UserError, match=r"config\.json.*model\.path"):
        build_network(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match=r"describes llama"):
        build_network(str(tmp_path))


@each_case
@pytest.mark.parametrize(("frames", "tokens", "found"), [(4, 66, "no multiple"), (1, 4096, "only"), (4, 4096, "only")])
def test_a_merge_that_cannot_work_is_refused_before_loading(case, frames, tokens, found):
    with pytest.raises(UserError, match=found):
        build_network(str(case), clip_frames=frames, clip_tokens=tokens)


def test_the_vocabulary_of_another_release_is_read_from_its_config():
    """HiCo_R16 and plain InternVL2.5 may have seven ids less; counts measured apart from this code."""
    config = {**FULL_SIZE, "llm_config": {**FULL_SIZE["llm_config"], "vocab_size": 92_553}}
    with torch.device("meta"):
        network = build_from_config(config)
    assert sum(parameter.numel() for parameter in network.parameters()) == 8_075_365_376
