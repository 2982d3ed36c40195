"""Parity with the original at every stage of the forward, and with transformers' native class."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from transformers import AriaForConditionalGeneration

from tests.families.aria.case import CASES, Case, Padded, runs
from vidtune.contracts import MediaItem
from vidtune.models.aria.network import Aria
from vidtune.models.aria.vision import valid_patches
from vidtune.models.fusion import fuse

VISION, PROJECTOR, HIDDEN, LOGITS, LOSS = 1e-4, 1e-4, 1e-4, 2e-4, 1e-5
"""Tolerances of the golden README, float32."""


@cache
def _network(case_index: int, attention: str, vision_attention: str) -> Aria:
    return CASES[case_index].network(attention, vision_attention)


def network_of(case: Case, attention: str = "eager", vision_attention: str = "eager") -> Aria:
    return _network(CASES.index(case), attention, vision_attention)


def _close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance


def _encode(network: Aria, padded: Padded) -> list[MediaItem]:
    features = network.features(padded.batch.media)
    return [
        MediaItem(item.kind, values, item.num_placeholders, item.name, "features")
        for item, values in zip(padded.batch.media, features, strict=True)
    ]


@torch.no_grad()
@pytest.mark.parametrize("vision_attention", ["eager", "sdpa"])
@pytest.mark.parametrize("case, run", runs("train", "vision.safetensors"))
def test_tower_and_projector(case: Case, run: str, vision_attention: str) -> None:
    facts, network = case.facts(run), network_of(case, vision_attention=vision_attention)
    items = _encode(network, case.padded(run))
    values = torch.cat([item.tensors["values"] for item in items])
    counts = torch.cat([item.tensors["patch_counts"] for item in items])
    valid = valid_patches(counts, int(values.shape[1] ** 0.5)).flatten(1)
    expected = case.tensors(run, "vision")
    assert torch.equal(~valid, expected["image_attn_mask"].bool())

    images, stride = facts["vision_images"], facts["vision_patch_stride"]
    seen = valid[images][:, ::stride]
    _close(values[images][:, ::stride][seen], expected["last_hidden_state"][seen], VISION)
    means = [float(image[mask].double().square().mean()) for image, mask in zip(values, valid, strict=True)]
    assert means == pytest.approx(facts["vision_mean_square_valid"], rel=1e-4)

    projected = network.connect(items).unflatten(0, (len(values), -1))
    _close(projected[:, :: facts["projector_query_stride"]], case.tensors(run, "projector")["output"], PROJECTOR)


@cache
def _visual(case_index: int, run: str) -> torch.Tensor:
    """Visual embeddings of a run, computed in float64: what is found in the decoder is then the decoder's. Rounding of
    tower and projector has a test of its own; at 980 px the decoder enlarges it to the size of the tolerance."""
    case = CASES[case_index]
    return case.network().double().encode_media(case.padded(run).batch.media).float()


def _decoder(case: Case, run: str, network: Aria, padded: Padded) -> Any:
    embeddings = network.embed(padded.batch.input_ids)
    if padded.batch.media:
        embeddings = fuse(embeddings, _visual(CASES.index(case), run), padded.batch)
    output = network.language.model(
        inputs_embeds=embeddings,
        attention_mask=padded.attention_mask,
        position_ids=padded.batch.position_ids,
        output_hidden_states=True,
        output_router_logits=True,
        use_cache=False,
    )
    return embeddings, output


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("case, run", runs("train", "lm.safetensors"))
def test_decoder_layer_by_layer(case: Case, run: str, attention: str) -> None:
    expected, facts = case.tensors(run, "lm"), case.facts(run)
    network, padded = network_of(case, attention), case.padded(run)
    embeddings, output = _decoder(case, run, network, padded)
    _close(embeddings[:, :: facts["inputs_embeds_stride"]], expected["inputs_embeds"], PROJECTOR)
    rows, columns = expected["positions"].unbind(1)
    _close(torch.stack([states[rows, columns] for states in output.hidden_states]), expected["hidden_states"], HIDDEN)
    _close(network.language.lm_head(output.last_hidden_state[rows, columns]), expected["logits"], LOGITS)

    shape, config = padded.input_ids.shape, network.native_config.text_config
    routers = torch.stack([logits.view(*shape, -1) for logits in output.router_logits])
    _close(routers[:, rows, columns], expected["router_logits"], HIDDEN)
    chosen = routers.topk(config.moe_topk, dim=-1)
    # As sets: the golden vouches for the gap between chosen and rejected experts, not for that between two chosen ones.
    assert torch.equal(chosen.indices.sort().values, expected["router_top_indices"].long().sort().values)
    _close(chosen.values.softmax(-1)[:, rows, columns], expected["router_scores"], HIDDEN)
    counts = torch.stack([layer.flatten().bincount(minlength=config.moe_num_experts) for layer in chosen.indices])
    assert torch.equal(counts, expected["tokens_per_expert"])


@torch.no_grad()
@pytest.mark.parametrize("case, run", runs("train", "lm.safetensors"))
def test_loss_through_the_shared_forward(case: Case, run: str) -> None:
    padded = case.padded(run)
    output = network_of(case)(padded.batch)
    assert float(output.nll.mean()) == pytest.approx(case.facts(run)["loss"], abs=LOSS)
    assert output.auxiliary == {}, "router losses belong to training mode alone"


@pytest.mark.parametrize("attention", ["eager", "vidtune_packed_sdpa"])
@pytest.mark.parametrize("case, run", runs("generate"))
def test_greedy_answers(case: Case, run: str, attention: str) -> None:
    expected, facts = case.tensors(run, "generate"), case.facts(run)
    processor = case.processor(run)
    output = network_of(case, attention).generate(
        case.prompts(run),
        max_new_tokens=facts["max_new_tokens"],
        stop_strings=processor.stop_strings,
        tokenizer=processor.tokenizer,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert torch.equal(output.sequences, expected["new_ids"])
    _close(torch.stack(output.scores, dim=1), expected["scores"], LOGITS)
    texts = [processor.decode(row.tolist()) for row in output.sequences]
    assert texts == [text.strip() for text in facts["decoded"]]


def _native(case: Case) -> AriaForConditionalGeneration:
    from vidtune.models.aria.config import read_config

    config = read_config(case.folder)
    model, report = AriaForConditionalGeneration.from_pretrained(
        case.root, config=config, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    return model.eval()


def _pixel_mask(case: Case, run: str, padded: Padded) -> torch.Tensor:
    size, patch = case.config["runs"][run]["size"], case.processor(run).patch_size
    counts = torch.cat([item.tensors["patch_counts"] for item in padded.batch.media])
    return valid_patches(counts * patch, size).long()


@torch.no_grad()
@pytest.mark.parametrize(
    "case, run", [run for run in runs("train") if run.values[0].config["runs"][run.values[1]]["size"] == 490]
)
def test_native_class_gives_the_same_logits_at_490_and_for_text(case: Case, run: str) -> None:
    padded = case.padded(run)
    inputs: dict[str, Any] = {"input_ids": padded.input_ids, "attention_mask": padded.attention_mask.long()}
    if padded.batch.media:
        inputs["pixel_values"] = torch.cat([item.tensors["pixel_values"] for item in padded.batch.media])
        inputs["pixel_mask"] = _pixel_mask(case, run, padded)
    theirs = _native(case)(**inputs, use_cache=False).logits
    ours = network_of(case)(padded.batch, return_logits=True).logits
    _close(ours, theirs, LOGITS)


@pytest.mark.parametrize("case, run", runs("generate"))
def test_native_class_gives_the_same_greedy_ids(case: Case, run: str) -> None:
    batch, processor = case.prompts(run), case.processor(run)
    ids = batch.input_ids.clone()
    ids.view(-1)[batch.visual_positions] = 9
    padded = Padded(batch, ids, ids, batch.attention_mask)
    model = _native(case)
    new = model.generate(
        input_ids=ids,
        attention_mask=batch.attention_mask.long(),
        pixel_values=torch.cat([item.tensors["pixel_values"] for item in batch.media]),
        pixel_mask=_pixel_mask(case, run, padded),
        max_new_tokens=case.facts(run)["max_new_tokens"],
        stop_strings=processor.stop_strings,
        tokenizer=processor.tokenizer,
        do_sample=False,
    )[:, ids.shape[1] :]
    assert torch.equal(new, case.tensors(run, "generate")["new_ids"])
