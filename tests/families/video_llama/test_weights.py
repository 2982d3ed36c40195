"""Checkpoints: strict in, exactly the same out, at the published sizes."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig

from tests.families.video_llama.case import FILES
from vidtune.contracts import UserError
from vidtune.models.loading import stream_file, stream_folder
from vidtune.models.video_llama import weights
from vidtune.models.video_llama.weights import build_from_config, build_network, export_weights, load_weights

LLAMA_7B = LlamaConfig(
    hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32000
)
LLAMA_13B = LlamaConfig(
    hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40, vocab_size=32000
)


def count(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def recipe(case):
    """The recipe that loads most files."""
    return max(case.config["recipes"], key=lambda name: len(case.config["recipes"][name]))


def test_exported_files_hold_every_tensor_that_was_loaded_bit_for_bit(case, recipe, tmp_path):
    network = case.network(recipe)
    export_weights(network, tmp_path)
    flags = case.config["recipes"][recipe]
    pairs = [(weights.VIT, FILES["vit"]), (weights.BLIP2_FILE, FILES["blip2"]), (weights.CKPT, flags["ckpt"])]
    if "ckpt_2" in flags:
        pairs.append((weights.CKPT_2, flags["ckpt_2"]))
    resized = case.config["vit"]["file_grid"] != case.sizes["image_size"] // case.sizes["patch_size"]
    for exported, source in pairs:
        ours, theirs = dict(stream_file(tmp_path / exported)), load_file(case.weights / source)
        assert ours.keys() <= theirs.keys()
        for name in theirs.keys() - ours.keys():
            # The last ViT block, BLIP-2's other projection, and constants.
            block = f"blocks.{case.sizes['vit_layers']}."
            assert name.startswith((block, "t5_proj.", "audio_encoder.")) or name.endswith(("position_ids", "inv_freq"))
        for name, tensor in ours.items():
            assert torch.equal(tensor, theirs[name]) or (name == "pos_embed" and resized), name
    ours, theirs = dict(stream_folder(tmp_path / weights.LLM)), dict(stream_folder(case.weights / "llm"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_network_loaded_from_its_export_is_exactly_equal(case, recipe, tmp_path):
    network = case.network(recipe)
    export_weights(network, tmp_path)
    audio = network.connector.audio_qformer is not None
    again = build_network(str(tmp_path), sizes=case.sizes, audio_branch=audio)
    # The published file holds one block more, which may be missing: it is not used.
    load_weights(again, str(tmp_path), ckpt=weights.CKPT, ckpt_2=weights.CKPT_2 if audio else None)
    theirs = again.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in network.state_dict().items())


def test_keys_have_no_bias_in_the_vit(case):
    for layer in case.network("VL").vision.vit.encoder.layers:
        query, key, value = layer.self_attn.qkv.bias.chunk(3)
        assert key.abs().max() == 0
        assert query.abs().max() > 0 and value.abs().max() > 0


def test_all_faults_of_a_checkpoint_come_in_one_message(case, tmp_path):
    folder = tmp_path / "weights"
    shutil.copytree(case.weights, folder)
    state = load_file(folder / "VL_LLaMA_2_Finetuned.safetensors")
    del state["video_query_tokens"]
    state["video_Qformer.cls.weight"] = torch.zeros(2)
    state["llama_proj.weight"] = torch.zeros(3, 5)
    torch.save({"model": state, "optimizer": {}, "scaler": None, "epoch": 2}, folder / "VL.pth")
    network = build_network(str(folder), llm="llm", sizes=case.sizes)
    with pytest.raises(UserError) as error:
        load_weights(network, str(folder), **FILES, ckpt="VL.pth")
    message = str(error.value)
    assert "VL.pth: video_Qformer.cls.weight" in message
    assert "connector.projection.weight (3, 5)" in message


def test_a_file_with_the_projection_alone_is_refused_not_completed_with_noise(case, tmp_path):
    """What the original wrote when the freeze flags were missing from its configuration."""
    state = load_file(case.weights / "VL_LLaMA_2_Finetuned.safetensors")
    alone = tmp_path / "VL.pth"
    torch.save({"model": {name: tensor for name, tensor in state.items() if name.startswith("llama_proj")}}, alone)
    network = build_network(str(case.weights), llm="llm", sizes=case.sizes)
    with pytest.raises(UserError, match=r"connector\.video_qformer"):
        load_weights(network, str(case.weights), **FILES, ckpt=str(alone))
    # After the file of the stage before it is complete, and overrides it.
    changed = {name: tensor + 1 for name, tensor in state.items() if name.startswith("llama_proj")}
    torch.save({"model": changed}, alone)
    load_weights(network, str(case.weights), **FILES, ckpt="VL_LLaMA_2_Finetuned.safetensors", ckpt_2=str(alone))
    assert torch.equal(network.connector.projection.bias, changed["llama_proj.bias"])


def test_without_a_checkpoint_the_connector_starts_anew_and_says_so(case, tmp_path, caplog):
    start = {"llama_proj.weight": torch.ones(case.config["llm"]["hidden_size"], case.sizes["qformer_width"])}
    start["llama_proj.bias"] = torch.zeros(case.config["llm"]["hidden_size"])
    torch.save({"model": {**start, "other.weight": torch.zeros(1)}}, tmp_path / "minigpt4.pth")
    network = build_network(str(case.weights), llm="llm", sizes=case.sizes)
    with torch.no_grad():
        network.connector.video_qformer.queries.fill_(torch.nan)
    load_weights(network, str(case.weights), **FILES, llama_proj_model=str(tmp_path / "minigpt4.pth"))
    assert "connector.video_qformer starts from random values" in caplog.text
    assert "connector.projection" not in caplog.text
    assert torch.equal(network.connector.projection.weight, start["llama_proj.weight"])
    assert all(parameter.isfinite().all() for parameter in network.connector.parameters())


def test_published_sizes_have_the_published_numbers_of_weights():
    with torch.device("meta"):
        network = build_from_config(LLAMA_7B, dtype="bfloat16", audio_branch=True)
        large = build_from_config(LLAMA_13B, dtype="bfloat16")
    vision, connector = network.vision, network.connector
    zero_key_biases = 39 * 1408
    assert count(vision.vit) - zero_key_biases == 985_894_528 + 2_816
    assert count(vision.qformer) == 105_137_664 + 24_576
    assert count(connector.video_qformer.transformer) == 18_905_088
    assert count(connector.video_qformer) + count(connector.projection) == 22_104_064
    assert count(connector.audio_qformer) + count(connector.audio_projection) == 22_855_680
    assert count(large.connector) == 22_891_520
    assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}
    decay = [p for p in large.connector.parameters() if p.ndim >= 2]
    assert (len(decay), len(list(large.connector.parameters()))) == (23, 58)


def test_a_projection_of_the_13b_model_is_refused_by_the_7b_one(case, tmp_path):
    state = load_file(case.weights / "VL_LLaMA_2_Finetuned.safetensors")
    state["llama_proj.weight"] = state["llama_proj.weight"].repeat(2, 1)
    state["llama_proj.bias"] = state["llama_proj.bias"].repeat(2)
    torch.save({"model": state}, tmp_path / "VL_13B.pth")
    network = build_network(str(case.weights), llm="llm", sizes=case.sizes)
    with pytest.raises(UserError, match="2 of another shape"):
        load_weights(network, str(case.weights), **FILES, ckpt=str(tmp_path / "VL_13B.pth"))


def test_a_folder_without_a_decoder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"model\.network\.llm"):
        build_network(str(tmp_path))
