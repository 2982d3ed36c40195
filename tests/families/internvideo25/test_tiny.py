"""The tiny variant, and the facts of ``conf/model`` about both sizes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sentencepiece import SentencePieceProcessor
from torch import nn

from tests.families.internvideo25.support import pack
from vidtune.contracts import MediaInfo, MediaRef, Message
from vidtune.models.internvideo25.processor import InternVideo25Processor
from vidtune.models.internvideo25.tiny import IMAGE_SIZE, write_tiny_checkpoint
from vidtune.models.internvideo25.weights import build_from_config, build_network, load_weights

CONF = Path(__file__).parents[3] / "conf" / "model"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "internvideo25"
    write_tiny_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def processor(folder) -> InternVideo25Processor:
    return InternVideo25Processor(str(folder), num_frames=4, image_size=IMAGE_SIZE, max_length=2048)


def test_the_checkpoint_has_the_originals_files_and_depends_on_the_seed_alone(folder, tmp_path):
    for name, seed in (("again", 0), ("other", 1)):
        write_tiny_checkpoint(tmp_path / name, seed)
    written = (folder / "model.safetensors").read_bytes()
    assert written == (tmp_path / "again" / "model.safetensors").read_bytes()
    assert written != (tmp_path / "other" / "model.safetensors").read_bytes()
    assert {file.name for file in folder.iterdir()} == {
        *("config.json", "model.safetensors", "tokenizer.model"),
        *("tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"),
    }


@pytest.mark.parametrize("text", ["Which shape moves?", "Naïve façade — ok?\n\tx  y", " lead", "1,234 → 5", "你好 <a>"])
def test_any_text_has_the_ids_that_sentencepiece_gives(folder, processor, text):
    expected = SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).encode(text)
    assert processor.tokenizer(text, add_special_tokens=False)["input_ids"] == expected
    assert processor.decode(expected) == text.strip()


def _row(processor, colour: int, answer: str):
    info = MediaInfo(MediaRef(f"{answer}.mp4"), 4, 1.0, 4.0, 48, 48)
    plan = processor.plan_media(info, np.random.default_rng(0), "train")
    frames = np.zeros((4, 48, 48, 3), np.uint8)
    frames[:, 8:40, 8:40, colour] = np.arange(120, 240, 30, dtype=np.uint8)[:, None, None]
    messages = [Message("user", (info.ref, "Which colour?")), Message("assistant", (answer,))]
    return processor.encode(messages, [plan], preset="train"), processor.load_media(plan, frames)


def test_it_learns_what_only_the_pixels_tell(folder, processor):
    torch.manual_seed(0)
    network = build_network(str(folder))
    load_weights(network, str(folder))
    rows = [_row(processor, 0, "red"), _row(processor, 1, "green")]
    batch = pack([encoded for encoded, _ in rows], [item for _, item in rows])
    optimizer = torch.optim.AdamW(network.train().parameters(), lr=2e-3)
    losses = []
    for _ in range(25):
        loss = network(batch).nll.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] < 1.2 * np.log(network.language.config.vocab_size)
    assert network.eval()(batch).correct.all(), losses[-1]


def _config(name: str) -> dict:
    return yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))


def test_lora_patterns_hit_the_projections_they_name_and_nothing_else():
    """224 linears of the language model with 41,943,040 weights at rank 16; six per tower layer."""
    targets = _config("internvideo25")["lora_targets"]
    with torch.device("meta"):
        network = build_from_config()
    linears = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    hit = {role: [m for n, m in linears.items() if re.fullmatch(p, n)] for role, p in targets.items()}
    assert len(hit["language"]) == 224 == 7 * 32
    assert sum(16 * (module.in_features + module.out_features) for module in hit["language"]) == 41_943_040
    assert len(hit["vision"]) == 6 * 24
    names = {name for pattern in targets.values() for name in linears if re.fullmatch(pattern, name)}
    assert {name.split(".")[0] for name in names} == {"language", "vision"}
    assert set(linears) - names == {"language.lm_head", "connector.linear_1", "connector.linear_2"}


def test_configured_sizes_are_the_networks(folder):
    for name, network in (("internvideo25_tiny", build_network(str(folder))), ("internvideo25", None)):
        if network is None:
            with torch.device("meta"):
                network = build_from_config()
        count = sum(parameter.numel() for parameter in network.parameters())
        assert _config(name)["num_parameters"] == pytest.approx(count / 1e9, rel=2e-3)
    assert _config("internvideo25_tiny")["processor"]["image_size"] == IMAGE_SIZE
