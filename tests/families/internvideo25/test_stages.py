"""Every stage of the forward against the original, from pixels to logits, under both attentions."""

from __future__ import annotations

import re

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from tests.families.internvideo25.support import assert_near, each_case, golden, network_of, pack, padded
from tests.families.internvideo25.test_merging import rounds
from vidtune.models.attention import PACKED_SDPA
from vidtune.models.internvideo25.hico import space_to_depth

TOWER, LANGUAGE, SMALL = 5e-5, 1e-4, 1e-5
"""Largest absolute difference allowed (the README's section 4)."""
each_attention = pytest.mark.parametrize("attention", ["eager", PACKED_SDPA])
KNOWN = (
    r"r\d+\.(frame_indices|pixel_values|vit_last_hidden|pixel_shuffled|merged|projected)",
    r"r\d+\.tome\.round\d+\.(argmax|size|x)",
    r"r\d+\.(upstream|internvl2_5)\.(inputs_embeds|final_hidden|logit_positions|logits)",
    r"l0\.(positions|v|[qk]_(before|after)_rope)",
    r"wqkv_split\.[qkv]",
    r"g\d+\.prompt_last_logits",
    r"tome_unit\.\w+\.(out|round\d+\.(argmax|size))",
    r"probe\.(vit_norm1|vit_mlp_act|mlp1_layer_norm|mlp1_act|llm_attention_norm|llm_final_norm)",
)


@each_case
def test_no_expected_tensor_is_ignored(case):
    unknown = [name for name in golden(case).expected if not any(re.fullmatch(known, name) for known in KNOWN)]
    assert not unknown


@each_case
@each_attention
@torch.no_grad()
def test_tower_merging_and_projector(case, attention):
    files, network = golden(case), network_of(case, attention)
    facts, compared = files.config["golden"], set()

    def compare(name, found, atol):
        if name in files.expected:
            expected = files.expected[name]
            assert_near(found[: len(expected)], expected, atol, name)
            compared.add(name.split(".")[-1])

    for row in files.video_rows:
        pixels = files.media(row).tensors["pixel_values"]
        hidden = network.vision.vit(pixel_values=pixels).last_hidden_state
        stored = files.stored_frames(row)
        compare(f"r{row}.vit_last_hidden", hidden[stored], TOWER)
        side = round((hidden.shape[1] - 1) ** 0.5)
        tokens = space_to_depth(hidden[:, 1:].unflatten(1, (side, side)))
        compare(f"r{row}.pixel_shuffled", tokens.flatten(1, 2)[stored], TOWER)
        clips = tokens.reshape(len(pixels) // facts["local_num_frames"], -1, tokens.shape[-1])
        for number, (merged, sizes, partner) in enumerate(
            rounds(clips, facts["num_tome_tokens"], files.config["llm_config"]["num_attention_heads"])
        ):
            compare(f"r{row}.tome.round{number}.argmax", partner.int(), 0.0)
            compare(f"r{row}.tome.round{number}.size", sizes, 0.0)
            compare(f"r{row}.tome.round{number}.x", merged, TOWER)
        item = files.media(row)
        [values] = network.features([item])
        compare(f"r{row}.merged", values["values"], TOWER)
        item.tensors, item.stage = values, "features"
        compare(
            f"r{row}.projected",
            network.connect([item]).view(len(pixels), -1, network.connector.linear_2.out_features),
            TOWER,
        )
    assert compared >= {"vit_last_hidden", "pixel_shuffled", "argmax", "size", "merged", "projected"}


@each_case
@each_attention
@pytest.mark.parametrize("template", ["upstream", "internvl2_5"])
@torch.no_grad()
def test_embeddings_hidden_states_and_logits(case, attention, template):
    files, network = golden(case), network_of(case, attention)
    for row in files.video_rows:
        batch = pack([files.encode(row, template)], [files.media(row)])
        batch = padded(batch) if attention == "eager" else batch
        embeddings = network.fused_embeddings(batch)
        hidden, _ = network.decode(embeddings, batch, **network.attention_arguments(batch))
        name = f"r{row}.{template}"
        for stage, found, atol in (
            ("inputs_embeds", embeddings[0], TOWER),
            ("final_hidden", hidden[0], LANGUAGE),
        ):
            if f"{name}.{stage}" in files.expected:
                assert_near(found, files.expected[f"{name}.{stage}"], atol, f"{name}.{stage}")
        positions = files.expected[f"{name}.logit_positions"]
        logits = network(batch, return_logits=True).logits[0, positions]
        assert_near(logits, files.expected[f"{name}.logits"], LANGUAGE, f"{name}.logits")
        assert torch.equal(positions[:-1], batch.target_positions)


@each_case
@torch.no_grad()
def test_queries_and_keys_stand_in_the_originals_head_order(case):
    files, network = golden(case), network_of(case)
    decoder = network.language.model
    layer, config = decoder.layers[0], network.language.config
    states = files.expected.get("r0.upstream.inputs_embeds")
    batch = pack([files.encode(0)], [files.media(0)])
    states = network.fused_embeddings(batch) if states is None else states[None]
    states = layer.input_layernorm(states)
    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads, "v": config.num_key_value_heads}
    parts = {
        part: getattr(layer.self_attn, f"{part}_proj")(states).unflatten(-1, (heads[part], -1)).transpose(1, 2)
        for part in "qkv"
    }
    cos, sin = decoder.rotary_emb(states, batch.position_ids)
    query, key = apply_rotary_pos_emb(parts["q"], parts["k"], cos, sin)
    positions = files.expected["l0.positions"]
    for name, found in (
        ("q_before_rope", parts["q"]),
        ("k_before_rope", parts["k"]),
        ("v", parts["v"]),
        ("q_after_rope", query),
        ("k_after_rope", key),
    ):
        assert_near(found[0].transpose(0, 1)[positions], files.expected[f"l0.{name}"], SMALL, name)


@each_case
@torch.no_grad()
def test_norms_and_activations_have_the_originals_epsilon_and_form(case):
    files, network = golden(case), network_of(case)
    inputs = files.tensors("probe_inputs.safetensors")
    tower, decoder = network.vision.vit.encoder.layer[0], network.language.model
    for name, module, key in (
        ("vit_norm1", tower.layernorm_before, "vit"),
        ("vit_mlp_act", tower.mlp.activation_fn, "act"),
        ("mlp1_layer_norm", network.connector.layer_norm, "mlp1"),
        ("mlp1_act", network.connector.act, "act"),
        ("llm_attention_norm", decoder.layers[0].input_layernorm, "llm"),
        ("llm_final_norm", decoder.norm, "llm"),
    ):
        assert_near(module(inputs[key]), files.expected[f"probe.{name}"], SMALL, name)
