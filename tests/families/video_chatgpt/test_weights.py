"""Checkpoints in and out, sizes, and the traps of the released configs."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionModel, LlamaForCausalLM

from vidtune.contracts import UserError
from vidtune.models.video_chatgpt.projector_file import export_projector, load_projector
from vidtune.models.video_chatgpt.tiny import write_tiny_checkpoint
from vidtune.models.video_chatgpt.weights import build_from_configs, build_network, export_weights, load_weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_checkpoint(folder)
    return folder


def load(folder, **options):
    network = build_network(str(folder), str(folder / "clip"), **options)
    load_weights(network, str(folder), str(folder / "clip"))
    return network


def test_full_size_counts_are_those_of_the_paper_and_its_checkpoints():
    with torch.device("meta"):
        network = build_from_configs()
    count = {role: sum(p.numel() for p in getattr(network, role).parameters()) for role in ("language", "connector")}
    assert count == {"language": 6_738_464_768, "connector": 4_198_400}
    assert network.new_tokens.weight.numel() == 2 * 4096
    # 303,179,776 of the whole tower without its last layer (12,596,224) and its last norm.
    assert sum(p.numel() for p in network.vision.parameters()) == 303_179_776 - 12_596_224 - 2 * 1024
    assert network.new_tokens.first_id == 32004
    assert round(sum(p.numel() for p in network.parameters()) / 1e9, 3) == 7.033


def test_an_export_reads_back_exactly_after_every_part_has_changed(folder, tmp_path):
    network = load(folder)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
    export_weights(network, tmp_path / "out")
    again = load(tmp_path / "out")
    for (name, tensor), other in zip(network.state_dict().items(), again.state_dict().values(), strict=True):
        if name == "language.model.embed_tokens.weight":
            tensor, other = tensor[:-2], other[:-2]  # the marker rows of the table are never read
        assert torch.equal(tensor, other), name


def test_an_export_in_half_precision_keeps_the_marker_rows_whole(folder, tmp_path):
    network = load(folder, dtype="bfloat16")
    assert {p.dtype for p in network.language.parameters()} == {p.dtype for p in network.vision.parameters()}
    assert {network.new_tokens.weight.dtype, network.connector.projection.weight.dtype} == {torch.float32}
    torch.nn.init.normal_(network.new_tokens.weight)
    export_weights(network, tmp_path / "out")
    assert torch.equal(load(tmp_path / "out", dtype="bfloat16").new_tokens.weight, network.new_tokens.weight)


def test_transformers_own_classes_agree(folder, tmp_path):
    network = load(folder).eval()
    export_weights(network, tmp_path / "out")
    decoder = LlamaForCausalLM.from_pretrained(tmp_path / "out", config=network.language.config).eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(decoder(ids).logits, network.language(ids).logits, atol=1e-5, rtol=0)

        tower = CLIPVisionModel.from_pretrained(folder / "clip").eval()
        pixels = torch.randn(2, 3, 112, 112)
        hidden = tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        torch.testing.assert_close(network.vision(pixels), hidden, atol=1e-5, rtol=0)


def test_ids_of_the_released_config_freeze_no_marker_and_end_no_answer(folder):
    stated = json.loads((folder / "config.json").read_text())
    assert (stated["bos_token_id"], stated["eos_token_id"], stated["pad_token_id"]) == (0, 1, -1)
    network = load(folder)
    for config in (network.language.config, network.language.generation_config):
        assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 0)
    ids = torch.tensor([[network.new_tokens.first_id, 5, network.new_tokens.first_id + 1]])
    network.embed(ids).square().sum().backward()
    assert (network.new_tokens.weight.grad.abs().sum(1) > 0).all()


def test_missing_projector_and_foreign_tensors_are_named(folder, tmp_path):
    for change, message in (
        (lambda state: state.pop("model.mm_projector.weight"), "missing: connector.projection.weight"),
        (lambda state: state.update({"model.extra": torch.ones(1)}), "unexpected: language.model.extra"),
        (lambda state: state.update({"model.norm.weight": torch.ones(3)}), "of another shape"),
    ):
        broken = tmp_path / "broken"
        shutil.copytree(folder, broken)
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, broken / "model.safetensors")
        with pytest.raises(UserError, match=message):
            load(broken)
        shutil.rmtree(broken)


def test_a_tower_of_another_width_is_refused(folder, tmp_path):
    shutil.copytree(folder / "clip", tmp_path / "clip")
    config = json.loads((tmp_path / "clip" / "config.json").read_text())
    config["vision_config"]["hidden_size"] *= 2
    (tmp_path / "clip" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="vision_path"):
        build_network(str(folder), str(tmp_path / "clip"))


def test_a_projector_file_moves_between_networks_and_not_between_bases(folder, tmp_path):
    trained, fresh = load(folder), load(folder)
    torch.nn.init.normal_(trained.new_tokens.weight)
    torch.nn.init.normal_(trained.connector.projection.weight)
    export_projector(trained, tmp_path / "p.bin")
    load_projector(fresh, tmp_path / "p.bin")
    assert torch.equal(fresh.new_tokens.weight, trained.new_tokens.weight)
    assert torch.equal(fresh.connector.projection.weight, trained.connector.projection.weight)

    torch.nn.init.normal_(fresh.language.model.embed_tokens.weight)
    with pytest.raises(UserError, match="another base"):
        load_projector(fresh, tmp_path / "p.bin")
    torch.save({"model.mm_projector.weight": torch.ones(2, 2)}, tmp_path / "q.bin")
    with pytest.raises(UserError, match="not a projector file"):
        load_projector(fresh, tmp_path / "q.bin")
