"""The tiny variant: the real code at a size that a CPU trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AriaForConditionalGeneration

from tests.helpers import config
from vidtune.contracts import MediaRef, Message, Sample
from vidtune.data.media_source import MediaSource
from vidtune.data.planner import RowPlan
from vidtune.data.rows import Encoder, RowBuilder
from vidtune.models.aria.tiny import build_tokenizer, write_tiny_checkpoint
from vidtune.models.aria.tokenizer import load_tokenizer
from vidtune.run.build import build_network, build_processor, prepare


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> object:
    folder = tmp_path_factory.mktemp("cache")
    cfg = config("train", ["model=aria_tiny", "data.prepare=null", f"paths.cache_dir={folder}"])
    prepare(cfg)
    return cfg


def test_the_tokenizer_reads_any_text_back_and_keeps_the_markers_apart() -> None:
    tokenizer = build_tokenizer()
    text = "Why?\nA. café ☃  two  spaces\tand 漢字<|im_end|>\n"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert tokenizer("<|img|>", add_special_tokens=False)["input_ids"] == [9]
    assert len(tokenizer("<|im_start|>", add_special_tokens=False)["input_ids"]) > 1


def test_the_same_seed_writes_the_same_checkpoint_and_the_native_class_opens_it(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        write_tiny_checkpoint(tmp_path / name, seed)
    weights = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "same", "other")}
    assert weights["one"] == weights["same"] != weights["other"]
    _, report = AriaForConditionalGeneration.from_pretrained(tmp_path / "one", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert load_tokenizer(str(tmp_path / "one")).get_vocab() == build_tokenizer().get_vocab()


def test_it_learns_to_tell_two_pictures_apart(tiny, tmp_path: Path) -> None:
    torch.manual_seed(0)
    samples = []
    for color, answer in (((220, 30, 30), "A"), ((30, 30, 220), "B")):
        file = tmp_path / f"{answer}.png"
        Image.new("RGB", (64, 48), color).save(file)
        question = Message("user", (MediaRef(str(file), "image"), "Which?"))
        samples.append(Sample(answer, (question, Message("assistant", (answer,)))))
    network, processor = build_network(tiny).train(), build_processor(tiny)
    source = MediaSource(processor)
    row = RowBuilder(samples, Encoder(processor, source, "train"), source, "token")[RowPlan(((0,), (1,)), 1.0, 0, 0)]
    letters = [
        index
        for index, target in enumerate(row.target_ids.tolist())
        if index == 0 or row.target_samples[index] != row.target_samples[index - 1]
    ]
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        output = network(row)
        (output.nll.mean() + sum(output.auxiliary.values())).backward()
        optimizer.step()
    assert float(network.eval()(row).nll[letters].max().detach()) < 0.1
