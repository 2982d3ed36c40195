"""Checkpoints in and out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen2ForCausalLM, SiglipVisionModel

from tests.families.nvila.cases import CASES
from vidtune.contracts import UserError
from vidtune.models.nvila.config import CONNECTOR, LANGUAGE, VISION
from vidtune.models.nvila.network import NVILA
from vidtune.models.nvila.sizes import published_config
from vidtune.models.nvila.tiny import write_tiny_checkpoint
from vidtune.models.nvila.weights import build_network, export_weights, load_weights

PARTS = (LANGUAGE, VISION, CONNECTOR)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_checkpoint(folder)
    return folder


@pytest.fixture
def copied(tiny, tmp_path) -> Path:
    return shutil.copytree(tiny, tmp_path / "copy")


def _load(folder: Path, **options) -> NVILA:
    network = build_network(str(folder), **options)
    load_weights(network, str(folder))
    return network


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {f"{part}/{k}": t for part in PARTS for k, t in load_file(folder / part / "model.safetensors").items()}


def _edit(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[k].dtype == t.dtype and torch.equal(found[k], t) for k, t in expected.items()
    )


# ------------------------------------------------------------------------------------------------- round trips


@CASES
def test_an_exported_checkpoint_is_the_loaded_one_bit_for_bit(case, tmp_path):
    export_weights(_load(case.folder / "model"), tmp_path)
    assert _equal(_tensors(tmp_path), _tensors(case.folder / "model"))
    for file in (case.folder / "model").rglob("*.json"):
        assert (tmp_path / file.relative_to(case.folder / "model")).read_text() == file.read_text()


def test_a_trained_network_is_read_back_and_keeps_the_tensors_that_it_does_not_run(tiny, tmp_path):
    network = _load(tiny)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.25)
    export_weights(network, tmp_path)
    again = _load(tmp_path)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    before, after = _tensors(tiny), _tensors(tmp_path)
    kept = {name for name in before if torch.equal(before[name], after[name])}
    assert kept == {n for n in before if (".layers.2." in n and n.startswith(VISION)) or "post_layernorm" in n}
    # transformers reads the folders on its own.
    assert torch.equal(
        SiglipVisionModel.from_pretrained(tmp_path / VISION).encoder.layers[0].mlp.fc1.weight,
        network.vision.encoder.layers[0].mlp.fc1.weight,
    )
    assert torch.equal(
        Qwen2ForCausalLM.from_pretrained(tmp_path / LANGUAGE).lm_head.weight, network.language.lm_head.weight
    )


def test_grown_tables_are_written_with_their_size_and_read_back(tiny, tmp_path):
    network = _load(tiny, grow_vocabulary=True)
    stored = load_file(tiny / LANGUAGE / "model.safetensors")["lm_head.weight"]
    rows = network.language.lm_head.weight
    assert len(rows) == len(stored) + 3
    torch.testing.assert_close(rows[-3:], stored.mean(0).expand(3, -1))
    export_weights(network, tmp_path)
    assert torch.equal(_load(tmp_path).language.lm_head.weight, rows)


def test_tied_tables_stay_one_tensor(copied, tmp_path):
    """NVILA-Lite-2B ties its tables and stores one of them."""
    _edit(copied / LANGUAGE / "config.json", tie_word_embeddings=True)
    tensors = load_file(copied / LANGUAGE / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, copied / LANGUAGE / "model.safetensors")
    network = _load(copied)
    assert network.language.lm_head.weight is network.language.model.embed_tokens.weight
    assert torch.equal(network.language.lm_head.weight, tensors["model.embed_tokens.weight"])
    export_weights(network, tmp_path / "out")
    assert _equal(_tensors(tmp_path / "out"), _tensors(copied))


def test_a_run_folder_of_the_original_is_read_one_level_down(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "run" / "model")
    assert torch.equal(_load(tmp_path / "run").language.lm_head.weight, _load(tiny).language.lm_head.weight)


# ------------------------------------------------------------------------------------------------- refusals


def test_a_tower_saved_without_its_prefix_is_refused_by_name(copied):
    """transformers 5 keeps the tower flat in memory; loading such names loosely would match nothing, in silence."""
    file = copied / VISION / "model.safetensors"
    save_file({name.removeprefix("vision_model."): t for name, t in load_file(file).items()}, file)
    with pytest.raises(UserError, match=r"missing: vision\.embeddings.* unexpected: embeddings\."):
        _load(copied)


def test_a_missing_and_a_misshapen_tensor_are_reported_together(copied):
    file = copied / CONNECTOR / "model.safetensors"
    tensors = load_file(file)
    del tensors["layers.1.weight"]
    tensors["layers.7.bias"] = tensors["layers.7.bias"][:-1].clone()
    save_file(tensors, file)
    with pytest.raises(UserError, match=r"1 missing: connector\.layers\.1\.weight; 1 of another shape: connector"):
        _load(copied)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video_encoder": '{"_target_": "llava.model.encoders.TSPVideoEncoder"}'}, "video_encoder is 'TSP"),
        ({"image_encoder": '{"_target_": "x.BasicImageEncoder", "end_tokens": "A"}'}, "arguments of image_encoder"),
        ({"num_time_tokens": 100}, "num_time_tokens is 100"),
        ({"mm_vision_select_feature": "patch"}, "mm_vision_select_feature is 'patch'"),
        ({"s2": True}, "s2 is True"),
        ({"dynamic_s2": True, "s2_scales": "64,128", "s2_resize_output_to_scale_idx": 0}, "s2_resize_output"),
    ],
)
def test_a_checkpoint_with_a_part_that_is_not_implemented_is_refused(copied, changes, message):
    _edit(copied / "config.json", **changes)
    with pytest.raises(UserError, match=message):
        build_network(str(copied))


def test_other_folders_and_projectors_are_refused_with_what_is_expected(copied, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="llm/, vision_tower/ and mm_projector/"):
        build_network(str(tmp_path / "empty"))
    _edit(copied / CONNECTOR / "config.json", mm_projector_type="linear")
    with pytest.raises(UserError, match=r"mm_projector_type='linear'.*mlp_downsample_3x3_fix"):
        build_network(str(copied))


# ------------------------------------------------------------------------------------------------- full size


def full_size(name: str) -> NVILA:
    """A published model without memory for its weights."""
    with torch.device("meta"):
        return NVILA(published_config(name))


@pytest.mark.parametrize(
    ("name", "projector"),
    [("lite_2b", 43_533_696), ("lite_8b", 61_101_440), ("lite_15b", 79_782_272), ("base_8b", 62_425_088)],
)
def test_a_full_size_network_has_the_published_number_of_weights(name, projector):
    network = full_size(name)
    counts = {role: sum(p.numel() for p in getattr(network, role).parameters()) for role in ("vision", "connector")}
    with torch.device("meta"):
        whole = SiglipVisionModel(network.config.vision)
    unrun = [whole.encoder.layers[-1], whole.post_layernorm]
    left_out = sum(p.numel() for module in unrun for p in module.parameters())
    assert counts == {"vision": 413_327_088 - left_out, "connector": projector}
    # Four projections and two linear layers of the MLP with biases, two norms in the layer and one after it.
    assert left_out == 4 * (1152**2 + 1152) + 2 * 1152 * 4304 + 4304 + 1152 + 3 * 2 * 1152
    if name.endswith("8b"):
        assert sum(p.numel() for p in network.language.parameters()) == 7_612_656_128


# ------------------------------------------------------------------------------------------------- tiny


def test_the_tiny_checkpoint_is_the_same_for_one_seed_and_reads_any_text(tiny, tmp_path):
    write_tiny_checkpoint(tmp_path / "again", seed=0)
    write_tiny_checkpoint(tmp_path / "other", seed=1)
    assert _equal(_tensors(tmp_path / "again"), _tensors(tiny))
    assert not _equal(_tensors(tmp_path / "other"), _tensors(tiny))
    tokenizer = AutoTokenizer.from_pretrained(tiny / LANGUAGE)
    text = "Où? 你好 <b> \n\t1.5 😀"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer("<|im_end|>")["input_ids"] == [tokenizer.eos_token_id]
