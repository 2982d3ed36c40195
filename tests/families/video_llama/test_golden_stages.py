"""Every tensor between frames and loss equals the original's, with both attention implementations."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from tests.families.video_llama.case import pad_rows

TOLERANCES = {
    "vit_patch_embed": 3e-5,
    "vit_block0": 3e-5,
    "vit_out": 3e-5,
    "ln_vision": 3e-5,
    "qformer_out": 1e-4,
    "frame_tokens": 1e-4,
    "video_qformer_out": 4e-5,
    "llama_proj": 4e-5,
    "audio_tokens": 1e-4,
    "audio_qformer_out": 4e-5,
    "audio_llama_proj": 4e-5,
    "inputs_embeds": 4e-5,
    "hidden_states": 1.3e-4,
    "logits": 1.3e-4,
    "label_logits_first32": 1.3e-4,
    "label_logprob": 1.3e-4,
    "loss": 1.5e-5,
}
"""Maximal absolute error by stage, fp32; from the README of the goldens."""

OTHER = {"pixels", "pixels_clamped", "llama_proj_clamped", "input_ids", "labels", "attention_mask"}
"""Compared by other tests."""


@contextmanager
def captured(network) -> Iterator[dict[str, Tensor]]:
    """Stages of the next forward, under the names of the goldens."""
    seen: dict[str, Tensor] = {}
    vit, connector = network.vision.vit, network.connector

    def keep_output(module: nn.Module, name: str, of=lambda output: output):
        return module.register_forward_hook(lambda _, __, output: seen.__setitem__(name, of(output)))

    def keep_input(module: nn.Module, name: str):
        return module.register_forward_pre_hook(
            lambda _, __, kwargs: seen.__setitem__(name, kwargs["encoder_hidden_states"]), with_kwargs=True
        )

    handles = [
        keep_output(vit.embeddings.patch_embedding, "vit_patch_embed", lambda out: out.flatten(2).transpose(1, 2)),
        keep_output(vit.encoder.layers[0], "vit_block0"),
        keep_output(vit.encoder, "vit_out", lambda out: out.last_hidden_state),
        keep_output(network.vision, "qformer_out"),
        keep_input(connector.video_qformer.transformer, "frame_tokens"),
        keep_output(connector.video_qformer, "video_qformer_out"),
        keep_output(connector.projection, "llama_proj"),
        network.language.model.register_forward_pre_hook(
            lambda _, __, kwargs: seen.__setitem__("inputs_embeds", kwargs["inputs_embeds"]), with_kwargs=True
        ),
        keep_output(network.language.model, "hidden_states", lambda out: out.last_hidden_state),
        keep_output(vit, "ln_vision", lambda out: out.last_hidden_state),
    ]
    if connector.audio_qformer is not None:
        handles += [
            keep_input(connector.audio_qformer.transformer, "audio_tokens"),
            keep_output(connector.audio_qformer, "audio_qformer_out"),
            keep_output(connector.audio_projection, "audio_llama_proj"),
        ]
    yield seen
    for handle in handles:
        handle.remove()


def expected_stages(case, name: str) -> dict[str, Tensor]:
    stages = {
        key.removeprefix(f"{name}/"): value
        for key, value in case.stages.items()
        if key.startswith(f"{name}/") and not key.startswith(f"{name}/grad/")
    }
    return {**stages, "loss": torch.tensor(case.json("expected/loss.json")[name])}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_stage_of_every_batch_equals_the_original(case, attention):
    worst: dict[str, float] = {}
    for spec in case.config["batches"]:
        network = case.network(spec["recipe"], attention)
        encoded, media = case.batch_of(spec)
        batch = pad_rows(encoded, case.golden_media(spec) or media)
        with torch.no_grad(), captured(network) as seen:
            output = network(batch, return_logits=True)
        seen["logits"] = output.logits
        flat = output.logits.flatten(0, 1)
        seen["label_logits_first32"] = flat[batch.target_positions[:32]]
        seen["label_logprob"] = -output.nll
        seen["loss"] = output.nll.mean()
        expected = expected_stages(case, spec["name"])
        unknown = expected.keys() - TOLERANCES.keys() - OTHER
        assert not unknown, f"no test knows {unknown}"
        for stage in expected.keys() - OTHER:
            ours, theirs = seen[stage], expected[stage]
            if theirs.dim() == 3 and stage in ("inputs_embeds", "hidden_states", "logits"):
                ours, theirs = ours[batch.attention_mask], theirs[batch.attention_mask]
            error = (ours.reshape(theirs.shape) - theirs).abs().max().item()
            worst[stage] = max(worst.get(stage, 0.0), error)
            assert error <= TOLERANCES[stage], (spec["name"], stage, error)
    print({stage: f"{error:.1e}" for stage, error in sorted(worst.items())})


def test_norm_after_the_vit_has_the_originals_eps_in_the_blocks_another(case):
    vit = case.network("VL").vision.vit
    assert vit.post_layernorm.eps == 1e-5
    assert {layer.layer_norm1.eps for layer in vit.encoder.layers} == {1e-6}


def test_clamped_grey_levels_give_the_clamped_reference(case):
    """The deviation that is our default: nothing wraps around."""
    losses = case.json("expected/loss.json")
    for spec in case.config["batches"]:
        name = spec["name"]
        if f"{name}/pixels_clamped" not in case.stages:
            continue
        network = case.network(spec["recipe"])
        encoded, _ = case.batch_of(spec)
        processor = case.processor()
        media = [processor.load_media(row.plans[0], case.decoded(row.plans[0])) for row in encoded]
        with torch.no_grad(), captured(network) as seen:
            loss = network(pad_rows(encoded, media)).nll.mean().item()
        assert (seen["llama_proj"] - case.stages[f"{name}/llama_proj_clamped"]).abs().max() <= 4e-5
        assert loss == pytest.approx(losses[f"{name}_clamped"], abs=1.5e-5)
