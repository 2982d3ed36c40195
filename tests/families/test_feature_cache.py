"""What every family must do with stored features: the losses and answers of frames, without the tower."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from tests.families.test_contract import TINY
from tests.helpers import config
from vidtune.contracts import Batch, Message, Sample, UserError
from vidtune.data.planner import RowPlan
from vidtune.data.questions import QuestionsReader
from vidtune.data.rows import Encoder, RowBuilder, pad_prompts
from vidtune.run.build import build_processor, build_source, build_tuned_network, prepare
from vidtune.run.features import RunFeatures

STAGES = {"features": "tuning.connector.mode=full", "connected": "tuning.connector.mode=frozen"}


class Run:
    """A network and its rows, as a run with the given overrides has them."""

    def __init__(self, cfg: DictConfig, samples: list[Sample]) -> None:
        prepare(cfg)
        torch.manual_seed(0)
        self.processor = build_processor(cfg)
        self.source = build_source(cfg, self.processor)
        self.samples = samples
        self.features, self.absent = None, ()
        if cfg.media.feature_cache:
            self.features = RunFeatures(cfg, self.source)
            self.features.plan([ref for sample in samples for ref in sample.media], "train", epochs=True)
            self.absent = self.features.absent
        self.network, _ = build_tuned_network(cfg, self.absent)
        if self.features is not None:
            self.features.attach(self.network, self.absent)
        self.network.eval()

    def row(self, *segments: tuple[int, ...]) -> Batch:
        encoder = Encoder(self.processor, self.source, "train")
        return RowBuilder(self.samples, encoder, self.source, "token")[RowPlan(segments, 1.0, 0, 0)]

    def nll(self, *segments: tuple[int, ...]) -> torch.Tensor:
        output = self.network(self.row(*segments))
        (output.nll.sum() + sum(output.auxiliary.values())).backward()
        return output.nll.detach()

    def answer(self) -> list[int]:
        prompt = Encoder(self.processor, self.source, "train")(self.samples[0], generation=True)
        batch = pad_prompts([prompt], [self.source.load(plan) for plan in prompt.plans], self.processor.pad_id)
        options = {"pad_token_id": self.processor.pad_id, "eos_token_id": None}
        return self.network.generate(batch, max_new_tokens=4, do_sample=False, **options)[0].tolist()


@pytest.fixture(scope="module")
def samples(shapes: Path) -> list[Sample]:
    """Three videos with a question each, and a row without media."""
    text = Sample("text", (Message("user", ("what ?",)), Message("assistant", ("nothing at all",))))
    return [*QuestionsReader(str(shapes), "{split}.jsonl")("train")[:9:4], text]


def cfg_of(model: str, cache_dir: Path, *overrides: str) -> DictConfig:
    fixed = ["model.dtype=float32", "data.prepare=null", f"paths.cache_dir={cache_dir}", "hardware=cpu", "tuning=lora"]
    return config("train", [f"model={model}", *fixed, "tuning.language.mode=full", *overrides])


ROWS = (((0,), (1,)), ((2,),), ((3,),))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("model", TINY)
def test_losses_and_answers_from_stored_features_are_those_from_frames(
    model: str, stage: str, samples: list[Sample], cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [STAGES[stage], f"media.feature_cache={tmp_path}"]
    frames = Run(cfg_of(model, cache_dir, STAGES[stage]), samples)
    expected, answer = [frames.nll(*row) for row in ROWS], frames.answer()
    gradients = {name: p.grad for name, p in frames.network.named_parameters() if p.grad is not None}

    filling = Run(cfg_of(model, cache_dir, *overrides), samples)
    assert filling.absent == ()
    filling.nll((0,))
    filling.features.close()
    mixed = filling.row((0,), (1,))
    assert {item.stage for item in mixed.media} == {stage, "pixels"}, "one video is stored, the other is not yet"
    filled = [filling.nll(*row) for row in ROWS]
    filling.features.close()

    stored = Run(cfg_of(model, cache_dir, *overrides, "media.feature_cache_mode=read"), samples)
    assert stored.absent == (("vision",) if stage == "features" else ("vision", "connector"))
    assert not list(stored.network.vision.parameters()), "the tower takes memory though nothing needs it"
    monkeypatch.setattr("vidtune.data.media_source.read_frames", None)  # nothing is decoded any more
    assert stored.answer() == answer
    for row, one, two in zip(ROWS, expected, filled):
        three = stored.nll(*row)
        torch.testing.assert_close(two, one, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(three, one, rtol=1e-6, atol=1e-6)
    reached = {name: p.grad for name, p in stored.network.named_parameters() if p.grad is not None}
    assert reached.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(reached[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.fixture
def filled(samples: list[Sample], cache_dir: Path, tmp_path: Path) -> Path:
    """A cache of the tiny model with everything in it."""
    run = Run(cfg_of("tiny", cache_dir, f"media.feature_cache={tmp_path / 'features'}"), samples)
    for row in ROWS:
        run.nll(*row)
    run.features.close()
    return tmp_path / "features"


@pytest.mark.parametrize(
    "other",
    ["model=video_llama_tiny", "model.processor.image_size=32", "data.num_frames=4", "media.backend=pyav"],
)
def test_reading_a_cache_that_was_written_for_something_else_is_refused(
    other: str, filled: Path, samples: list[Sample], cache_dir: Path
) -> None:
    overrides = [f"media.feature_cache={filled}", "media.feature_cache_mode=read", other]
    with pytest.raises(UserError, match=r"\d of 4 media of this run are not in it"):
        Run(cfg_of("tiny", cache_dir, *overrides), samples)


def test_features_of_other_weights_in_the_same_file_are_not_used(
    filled: Path, samples: list[Sample], cache_dir: Path, tmp_path: Path
) -> None:
    overrides = [f"model.path={tmp_path / 'other'}", "model.prepare.seed=1"]
    expected = Run(cfg_of("tiny", cache_dir, *overrides), samples).nll((0,))
    other = Run(cfg_of("tiny", cache_dir, *overrides, f"media.feature_cache={filled}"), samples)
    assert other.absent == () and len(other.features.missing()) == 3
    assert torch.equal(other.nll((0,)), expected)


def test_a_truncated_shard_brings_the_tower_back_and_is_written_again(
    filled: Path, samples: list[Sample], cache_dir: Path
) -> None:
    cfg = cfg_of("tiny", cache_dir, f"media.feature_cache={filled}")
    assert Run(cfg, samples).absent == ("vision",)
    for shard in filled.glob("*/*.safetensors"):
        shard.write_bytes(shard.read_bytes()[:-8])
    again = Run(cfg, samples)
    assert again.absent == ()
    expected = [again.nll(*row) for row in ROWS]
    again.features.close()
    rebuilt = Run(cfg, samples)
    assert rebuilt.absent == ("vision",)
    for row, nll in zip(ROWS, expected):
        torch.testing.assert_close(rebuilt.nll(*row), nll, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "override", "message"),
    [
        ("tiny", "tuning.vision.mode=full", "vision trains.*tuning.vision.mode=frozen"),
        ("tiny", "+tuning.parts={vision.narrow: {mode: full}}", "vision.narrow trains"),
        ("tiny", "data.sampling=random", "frames of .* drawn anew in every epoch"),
        ("video_llama_tiny", "model.processor.random_crop=true", "crop of .*in every epoch.*switch random crops off"),
        ("tiny", "strategy.name=sharded", "vidtune precompute"),
    ],
)
def test_a_cache_that_could_not_be_right_is_refused_before_weights_are_loaded(
    model: str, override: str, message: str, samples: list[Sample], cache_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        Run(cfg_of(model, cache_dir, f"media.feature_cache={tmp_path}", override), samples)


def test_a_role_that_is_needed_after_all_says_why_it_is_absent(
    filled: Path, samples: list[Sample], cache_dir: Path
) -> None:
    run = Run(cfg_of("tiny", cache_dir, f"media.feature_cache={filled}"), samples)
    with pytest.raises(AttributeError, match=r"'vision' was not loaded.*start again"):
        run.network.encode_media([run.processor.dummy_media()])
