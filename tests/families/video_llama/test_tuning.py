"""What trains and decays under the guide's freeze flags, and the options that the original read and ignored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from tests.helpers import config
from vidtune.contracts import MediaInfo, MediaRef, Message, UserError
from vidtune.models.video_llama import weights
from vidtune.run.build import build_network, build_processor, prepare
from vidtune.tuning.groups import parameter_groups
from vidtune.tuning.policy import apply_tuning

RECIPE = ["experiment=video_llama_actions_connector", "model.path=ckpts", "data.root=videos", "hardware=rtx4090"]
LLAMA_7B = LlamaConfig(
    hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32000
)
VIDEO, PROJECTION = {"connector.video_qformer"}, {"connector.projection"}
AUDIO = {"connector.audio_qformer", "connector.audio_projection"}


def tuned(overrides: list[str], audio: bool = False):
    """(published network without storage, policies) under the recipe."""
    cfg = config("train", [*RECIPE, *overrides])
    with torch.device("meta"):
        network = weights.build_from_config(LLAMA_7B, dtype="bfloat16", audio_branch=audio)
    return network, apply_tuning(network, cfg.tuning, cfg.model.lora_targets), cfg


def frozen(*parts: str) -> str:
    return "+tuning.parts={" + ", ".join(f"{part}: {{mode: frozen}}" for part in sorted(parts)) + "}"


@pytest.mark.parametrize(
    ("flags", "overrides", "audio", "expected"),
    [
        ("the guide's", [], False, VIDEO | PROJECTION),
        ("frozen_llama_proj", [frozen(*PROJECTION)], False, VIDEO),
        ("frozen_video_Qformer", [frozen(*VIDEO)], False, PROJECTION),
        ("frozen_audio_Qformer", [frozen(*AUDIO)], True, VIDEO | PROJECTION),
        ("audio stages", [frozen(*VIDEO, *PROJECTION)], True, AUDIO),
        ("not freeze_vit", ["+tuning.parts={vision.vit: {mode: full}}"], False, {"vision.vit"} | VIDEO | PROJECTION),
        (
            "not freeze_qformer",
            ["+tuning.parts={vision.qformer: {mode: full}}"],
            False,
            {"vision.qformer"} | VIDEO | PROJECTION,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_freeze_flag_of_the_original_has_its_part(flags, overrides, audio, expected) -> None:
    network, policies, _ = tuned(overrides, audio)
    assert {".".join(name.split(".")[:2]) for name in policies} == expected
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained == set(policies)
    assert all(network.get_parameter(name).dtype == torch.float32 for name in trained)


def test_decay_spares_what_the_original_spares_at_the_published_size() -> None:
    """23 tensors with decay, queries and frame positions among them, and 35 biases and norms without."""
    network, policies, cfg = tuned([])
    groups = parameter_groups(network, policies, cfg.optim.lr, cfg.optim.weight_decay)
    found = {g["weight_decay"]: (len(g["params"]), sum(p.numel() for p in g["params"])) for g in groups}
    assert found == {0.05: (23, 22_069_248), 0.0: (35, 34_816)}
    decays = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    former = network.connector.video_qformer
    assert {id(former.queries), id(former.positions.weight)} <= decays


def test_options_that_the_original_read_and_ignored_take_effect(cache_dir: Path) -> None:
    words = [
        "experiment=video_llama_actions_connector",
        "model=video_llama_tiny",
        "data.root=videos",
        "hardware=cpu",
        "data.num_frames=5",  # n_frms
        "model.network.sizes.image_size=84",
        "model.network.sizes.video_layers=3",  # fusion_head_layers
        "model.weights.ckpt=null",  # the file holds two layers
        "model.max_length=90",  # max_txt_len
        f"paths.cache_dir={cache_dir}",
    ]
    cfg = config("train", words)
    prepare(cfg)
    network, processor = build_network(cfg), build_processor(cfg)
    assert len(network.connector.video_qformer.transformer.encoder.layer) == 3
    info = MediaInfo(MediaRef("/videos/a.mp4"), 30, 10.0, 3.0, 60, 80)
    plan = processor.plan_media(info, np.random.default_rng(0), "train")
    assert len(plan.frame_indices) == 5 and plan.frame_size == (84, 84)
    item = processor.load_media(plan, (np.zeros((84, 84, 3), np.uint8) for _ in plan.frame_indices))
    assert network.features([item])[0]["values"].shape[0] == 5
    asked = Message("user", (info.ref, "Which action is it? " * 30)), Message("assistant", ("Walking",))
    assert processor.encode(asked, [plan], preset="train").num_tokens == 90
    processor.max_length = 20
    with pytest.raises(UserError, match=r"model\.max_length is 20"):
        processor.encode(asked, [plan], preset="train")
