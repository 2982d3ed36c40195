"""Pixels to gradients against the original, stage by stage."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Qwen2ForCausalLM, SiglipVisionModel

from tests.families.nvila.cases import CASES, GRADIENT_TOLERANCE, TOLERANCE, Case, collapse, ours
from vidtune.contracts import IGNORE, MediaItem
from vidtune.data.rows import pad_prompts
from vidtune.media import probe, read_frames


def _close(found: Tensor, expected: Tensor, stage: str) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[stage])


def _whole_batch(case: Case) -> None:
    if case.refused:
        pytest.skip(f"rows {case.refused} are cut inside their media by the original; ours refuses them")


def _features(case: Case, kind: str) -> list[MediaItem]:
    items = case.items(kind)
    with torch.no_grad():
        tensors = case.network.features(items) if items else []
    return [MediaItem(kind, t, item.num_placeholders, stage="features") for item, t in zip(items, tensors, strict=True)]


@CASES
def test_media_are_read_as_the_original_read_them(case):
    raw = load_file(case.folder / "inputs.safetensors")
    refs = {ref.path: ref for sample in case.samples for ref in sample.media}
    for path, ref in refs.items():
        key = next(key for key in raw if path.endswith("/" + key))
        expected = raw[key] if raw[key].ndim == 4 else raw[key][None]
        info = probe(ref)
        assert (info.num_frames, info.height, info.width) == tuple(expected.shape[:3])
        frames = np.stack(list(read_frames(ref, range(info.num_frames))))
        assert np.array_equal(frames, expected.numpy())


@CASES
def test_pixels(case):
    images = case.items("image")
    if images:
        _close(torch.cat([item.tensors["pixel_values"] for item in images]), case.tensors["pixels.image"], "pixels")
    for index, item in enumerate(case.items("video")):
        _close(item.tensors["pixel_values"], case.tensors[f"pixels.video.{index}"], "pixels")


@CASES
@pytest.mark.parametrize("kind", ["image", "video"])
def test_tower_projector_and_tokens_of_a_medium(case, kind):
    items = _features(case, kind)
    assert bool(items) == (f"stage.{kind}.tower" in case.tensors)
    if not items:
        return
    expected = {name.split(".")[-1]: t for name, t in case.tensors.items() if name.startswith(f"stage.{kind}.p")}
    _close(torch.cat([item.tensors["values"] for item in items]), case.tensors[f"stage.{kind}.tower"], "tower")
    with torch.no_grad():
        entering = torch.cat([case.network._projector_input(item) for item in items])
        if "projector_in" in expected:
            _close(entering, expected["projector_in"], "tower")
        shuffled = case.network.connector.layers[0](entering)[: len(expected["projector_shuffled"])]
        _close(shuffled, expected["projector_shuffled"], "tower")
        _close(case.network.connector(entering), expected["projector_out"], "embeds")
        tokens = case.network.connect(items)
        newline = case.network.embed(torch.tensor(case.processor.newline_ids))

    # The original appends the newline to the features; here it stands among the ids of the span.
    spans, start = [], 0
    for ref in (ref for sample in case.samples for ref in sample.media if ref.kind == kind):
        plan = case.source.plan(ref, 0, "train")
        parts = []
        for span in plan.spans:
            parts += [tokens[start : start + span.num_placeholders], newline]
            start += span.num_placeholders
            if kind == "image":
                spans.append(torch.cat(parts))
                parts = []
        if kind == "video":
            spans.append(torch.cat(parts))
    assert start == len(tokens)
    stored = [name for name in case.tensors if name.startswith(f"stage.{kind}.embeds.")]
    for name in stored:
        _close(spans[int(name.rpartition(".")[2])], case.tensors[name], "embeds")


@CASES
def test_fused_embeddings_hidden_states_and_logits_of_each_row(case):
    expected = case.tensors
    with torch.no_grad():
        embeddings = case.split(case.network.fused_embeddings(case.batch))
        hidden, _ = case.network.decode(
            case.network.fused_embeddings(case.batch), case.batch, **case.network.attention_arguments(case.batch)
        )
        rows = case.split(hidden)
        logits = [case.network.language.lm_head(row) for row in rows]
    for row, embedded, states in zip(case.kept, embeddings, rows, strict=True):
        length = case.expected["spliced_lengths"][row]
        _close(embedded, expected["spliced.inputs_embeds"][row, :length], "embeds")
        _close(states, expected["llm.last_hidden"][row, :length], "hidden")
    if "llm.logits_row0" in expected and 0 in case.kept:
        _close(logits[0], expected["llm.logits_row0"], "logits")
    for (row, position), values in zip(
        expected["llm.logits_target_positions"].tolist(), expected["llm.logits_at_targets"], strict=True
    ):
        if row in case.kept:
            _close(logits[case.kept.index(row)][position], values, "logits")


@CASES
def test_packed_row_is_laid_out_as_the_original_packs_it(case):
    _whole_batch(case)
    # One dummy token at the end chooses the original's attention kernel; it has no counterpart here.
    mask = case.tensors["packed.attention_mask"]
    assert mask[0, -1] == 0 and mask[0, :-1].all()
    assert torch.equal(case.batch.position_ids, case.tensors["packed.position_ids"][:, :-1].long())
    labels = torch.full_like(case.batch.input_ids, IGNORE)
    labels[0, case.batch.target_positions + 1] = case.batch.target_ids
    assert torch.equal(labels, case.tensors["packed.labels"][:, :-1])
    lengths = torch.unique_consecutive(case.batch.segment_ids[0], return_counts=True)[1]
    assert [0, *lengths.cumsum(0).tolist()] == case.expected["packed_cu_seqlens"]
    with torch.no_grad():
        embeddings = case.network.fused_embeddings(case.batch)
    if "packed.inputs_embeds" in case.tensors:
        _close(embeddings, case.tensors["packed.inputs_embeds"][:, :-1], "embeds")
    else:
        assert [1, embeddings.shape[1] + 1, embeddings.shape[2]] == case.expected["packed_inputs_embeds_shape"]


@CASES
@pytest.mark.parametrize("attention", ["vidtune_packed_sdpa", "eager"])
def test_loss_and_gradients_of_full_fine_tuning(case, attention):
    _whole_batch(case)
    network, batch = copy.deepcopy(case.network), case.batch
    if attention == "eager":
        # The description of the packed mask, executed by the kernel that the original was run with.
        network.set_attention("eager")
        network.attention_arguments = lambda batch: _dense_mask(case, batch)
    output = network(batch)
    loss = output.nll.sum() / batch.normalizer
    _close(loss, torch.tensor(case.expected["loss"]), "loss")
    _close(loss, torch.tensor(case.expected["packed_loss"]), "loss")
    assert len(output.nll) == case.expected["num_targets"]
    sums = torch.zeros(len(case.samples)).index_add(0, batch.target_samples, output.nll.detach())
    _close(sums, torch.tensor(case.expected["loss_sum_per_row"]), "sum")

    before = sum(encoded.num_targets for encoded in case.whole)
    # The original's denominator: the targets before splicing and cutting.
    denominator = case.pack(case.kept, normalizer=before).normalizer
    _close(output.nll.sum() / denominator, torch.tensor(case.expected["loss_num_items_in_batch"]), "loss")

    loss.backward()
    norms = {name: parameter.grad.norm().item() for name, parameter in network.named_parameters()}
    unrun = {ours(name) for name in case.expected["trainable_without_gradient"]}
    assert set(norms) == {ours(name) for name in case.expected["trainable"]} - unrun
    for name, expected in case.expected["grad_norms"].items():
        if expected is not None and expected > 1e-3:
            assert norms[ours(name)] == pytest.approx(expected, rel=GRADIENT_TOLERANCE), name


def _dense_mask(case: Case, batch):
    layout = type(case.network).attention_arguments(case.network, batch)["packed_layout"]
    seen = layout.dense_mask(batch.input_ids.shape[1])
    bias = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    return {"attention_mask": bias[None, None]}


@CASES
def test_transformers_own_classes_give_the_same_numbers(case):
    items = case.items("video") + case.items("image")
    tower = SiglipVisionModel.from_pretrained(case.folder / "model" / "vision_tower", attn_implementation="eager")
    decoder = Qwen2ForCausalLM.from_pretrained(case.folder / "model" / "llm", attn_implementation="eager")
    with torch.no_grad():
        pixels = torch.cat([item.tensors["pixel_values"] for item in items])
        states = tower(pixels, output_hidden_states=True).hidden_states[case.network.config.select_layer]
        found = torch.cat([values["values"] for values in case.network.features(items)])
        _close(found, states, "tower")
        embeddings = case.split(case.network.fused_embeddings(case.batch))
        logits = case.network(case.batch, return_logits=True).logits
        for embedded, row in zip(embeddings, case.split(logits), strict=True):
            theirs = decoder(inputs_embeds=embedded[None]).logits[0]
            _close(row[:, : theirs.shape[1]], theirs, "logits")


@CASES
def test_greedy_answers(case):
    for expected in case.expected["generation"]:
        encoded, batch = case.prompt(expected["request"])
        limit = expected["request"]["max_new_tokens"]
        assert collapse(encoded, case.expected["special_token_ids"])[0] == expected["prompt_ids"]
        assert encoded.num_tokens == expected["prompt_embeds_len"]
        shapes = {kind: [] for kind in expected["media"]}
        for item in batch.media:
            pixels = item.tensors["pixel_values"]
            shapes[item.kind] += [list(pixels.shape)] if item.kind == "video" else [list(tile.shape) for tile in pixels]
        assert shapes == expected["media"]
        new = case.network.generate(batch, max_new_tokens=limit, do_sample=False, eos_token_id=case.processor.stop_ids)
        assert new[0].tolist() == expected["ids"]


@CASES
def test_prompts_of_a_batch_are_answered_as_if_alone(case):
    requests = [expected["request"] for expected in case.expected["generation"]]
    prompts = [case.prompt(request) for request in requests]
    media = [item for _, batch in prompts for item in batch.media]
    batch = pad_prompts([encoded for encoded, _ in prompts], media, case.processor.pad_id)
    limit = max(request["max_new_tokens"] for request in requests)
    new = case.network.generate(batch, max_new_tokens=limit, do_sample=False, eos_token_id=case.processor.stop_ids)
    for ids, expected in zip(new.tolist(), case.expected["generation"], strict=True):
        assert ids[: len(expected["ids"])] == expected["ids"]
