"""The four exports of every family, and adapters of any kind in plain PEFT."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AriaForConditionalGeneration

from tests.helpers import config, small_run
from vidtune.checkpoint.locate import find_checkpoint
from vidtune.checkpoint.probe import probe_logits
from vidtune.checkpoint.trained import load_adapter, load_trained
from vidtune.contracts import Batch, MediaItem, UserError
from vidtune.models.base import VideoLLM
from vidtune.run import evaluate, train
from vidtune.run.build import build_network, build_processor, build_tuned_network
from vidtune.run.compose import compose_config
from vidtune.run.export import FORMS, export
from vidtune.run.recipe import with_recipe
from vidtune.run.train import RUN_DIR_VARIABLE
from vidtune.tuning.adapters import four_bit_linears, quantise

FAMILIES = ("tiny", "aria_tiny", "internvideo25_tiny", "nvila_tiny", "video_chatgpt_tiny", "video_llama_tiny")
CPU = ["hardware=cpu"]


def start(runs: Path, shapes: Path, cache_dir: Path, name: str, *overrides: str) -> Path:
    words = small_run(shapes, cache_dir, runs, f"run_name={name}", "trainer.val_samples=4", "optim.lr=0.01", *overrides)
    words += ["trainer.max_steps=2", "trainer.val_every=2"]
    os.environ.pop(RUN_DIR_VARIABLE, None)
    try:
        train(config("train", words), words)
    finally:
        os.environ.pop(RUN_DIR_VARIABLE, None)
    return runs / name


def network_and_processor(run: Path) -> tuple:
    cfg = with_recipe(compose_config(CPU), run, CPU)
    return build_network(cfg), build_processor(cfg)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def aria(runs: Path, shapes: Path, cache_dir: Path) -> Path:
    """Adapters on linear layers and on fused experts, the connector trained whole."""
    return start(runs, shapes, cache_dir, "aria", "model=aria_tiny", "tuning=lora")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_family_with_experts(aria: Path, form: str, tmp_path: Path) -> None:
    # export() raises where the logits of the re-loaded weights differ.
    folder = export(str(aria), form, str(tmp_path / form), "last", CPU)
    if form == "adapter":
        settings = json.loads((folder / "adapter_config.json").read_text())
        assert len(settings["target_parameters"]) == 4
        assert settings["modules_to_save"] == ["model.multi_modal_projector"]


def test_a_merged_folder_opens_in_the_native_class_with_the_files_of_its_source(
    aria: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = with_recipe(compose_config(CPU), aria, CPU)
    (Path(cfg.model.path) / "preprocessor_config.json").write_text("{}")
    folder = export(str(aria), "merged", str(tmp_path / "merged"), "last", CPU)
    assert "AriaForConditionalGeneration.from_pretrained" in capsys.readouterr().err
    assert {"preprocessor_config.json", "tokenizer.json"} <= {file.name for file in folder.iterdir()}
    model, report = AriaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    again = with_recipe(compose_config([*CPU, f"model.path={folder}"]), aria, [*CPU, f"model.path={folder}"])
    ids = torch.arange(10, 40)[None]
    with torch.no_grad():
        theirs = model.eval()(input_ids=ids, use_cache=False).logits
        ours = build_network(again).eval().language(input_ids=ids, use_cache=False).logits
    assert (theirs - ours).abs().max() < 1e-4


def trained_network(run: Path) -> tuple:
    """The network of a run with what it trained, its processor, and the untuned network."""
    cfg = with_recipe(compose_config(CPU), run, CPU)
    network, _ = build_tuned_network(cfg)
    load_trained(network, find_checkpoint(run, "last"))
    return network, build_processor(cfg), build_network(cfg)


@pytest.mark.parametrize(
    "words",
    [
        ("tuning=lora", "tuning.connector.mode=frozen"),
        ("tuning=lora",),
        ("tuning=vision_lora_language_lora",),
        ("tuning=qlora", "model.dtype=bfloat16", "hardware.precision=bf16-mixed"),
    ],
    ids=["linear", "linear_and_whole_modules", "tower_too", "four_bit"],
)
def test_plain_peft_gives_the_trained_logits(
    runs: Path, shapes: Path, cache_dir: Path, tmp_path: Path, words: tuple[str, ...], request: pytest.FixtureRequest
) -> None:
    run = start(runs, shapes, cache_dir, f"plain_{request.node.callspec.id}", *words)
    folder = export(str(run), "adapter", str(tmp_path / "adapter"), "last", CPU)
    network, processor, base = trained_network(run)
    expected, untuned = probe_logits(network, processor), probe_logits(base, processor)
    if "tuning=qlora" in words:
        quantise(base, four_bit_linears(network))
    opened = PeftModel.from_pretrained(base, str(folder))
    found = probe_logits(opened.base_model.model, processor)
    largest = expected.abs().max()
    assert (found - expected).abs().max() <= 1e-5 * largest < (untuned - expected).abs().max()


def test_plain_peft_gives_the_trained_logits_on_the_native_class(aria: Path, tmp_path: Path) -> None:
    """Adapters on linear layers and fused experts, the projector trained whole; a picture and text."""
    folder = export(str(aria), "adapter", str(tmp_path / "adapter"), "last", CPU)
    network, processor, untuned = trained_network(aria)
    native = AriaForConditionalGeneration.from_pretrained(
        with_recipe(compose_config(CPU), aria, CPU).model.path, dtype=torch.float32, attn_implementation="eager"
    )
    opened = PeftModel.from_pretrained(native, str(folder)).eval()
    picture = torch.randn(1, 3, 70, 70, generator=torch.Generator().manual_seed(0))
    text = processor.tokenizer(_TEXT, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[native.config.image_token_id] * 8 + text])
    with torch.no_grad():
        seen = {"pixel_values": picture, "pixel_mask": torch.ones(1, 70, 70, dtype=torch.bool)}
        theirs = opened(input_ids=ids, use_cache=False, **seen).logits[0]
    ours, before = (_logits_of_a_picture(net, picture, text) for net in (network, untuned))
    largest = ours.abs().max()
    assert (theirs - ours).abs().max() <= 1e-4 * largest < (theirs - before).abs().max()


_TEXT = "What happens here? One thing after the other."


@torch.no_grad()
def _logits_of_a_picture(network: VideoLLM, picture: torch.Tensor, text: list[int]) -> torch.Tensor:
    """(L, V) logits of our network on a square that fills eight placeholders, then text."""
    patches = picture.shape[-1] // network.native_config.vision_config.patch_size
    tensors = {"pixel_values": picture, "patch_counts": torch.tensor([[patches, patches]])}
    ids = torch.tensor([[0] * 8 + text])
    batch = Batch(
        input_ids=ids,
        position_ids=torch.arange(ids.shape[1])[None],
        visual_positions=torch.arange(8),
        media=[MediaItem("image", tensors, 8, "picture")],
        segment_ids=torch.zeros_like(ids),
        branch_ids=torch.zeros_like(ids),
        target_positions=torch.tensor([8]),
        target_ids=ids[0, -1:],
        target_weights=torch.ones(1),
        target_samples=torch.zeros(1, dtype=torch.long),
        sample_ids=("picture",),
    )
    return network.eval()(batch, return_logits=True).logits[0]


@pytest.mark.parametrize("family", ["nvila_tiny", pytest.param("internvideo25_tiny", marks=pytest.mark.slow)])
def test_a_four_bit_run_trains_resumes_answers_and_exports(
    runs: Path, shapes: Path, cache_dir: Path, tmp_path: Path, family: str
) -> None:
    words = [f"model={family}", "tuning=qlora", "model.dtype=bfloat16", "hardware.precision=bf16-mixed"]
    run = start(runs, shapes, cache_dir, f"qlora_{family}", *words)
    words = [f"resume={run}", "trainer.max_steps=3"]
    train(config("train", words), words)
    os.environ.pop(RUN_DIR_VARIABLE, None)
    assert find_checkpoint(run, "last").stem.endswith("000003")
    words = [f"run={run}", "hardware=cpu", "eval.limit=4", "eval.max_new_tokens=4"]
    assert "accuracy" in evaluate(config("evaluate", words), words)
    for form in FORMS:
        export(str(run), form, str(tmp_path / form), "last", CPU)


def test_an_adapter_of_another_family_or_base_is_refused(
    aria: Path, runs: Path, shapes: Path, cache_dir: Path, tmp_path: Path
) -> None:
    folder = export(str(aria), "adapter", str(tmp_path / "adapter"), "last", CPU)
    small = start(runs, shapes, cache_dir, "small", "tuning=lora")
    network, _ = network_and_processor(small)
    with pytest.raises(UserError, match="made for another model"):
        load_adapter(network, folder)
    # The same family and names at another width: only shapes tell.
    other = tmp_path / "other"
    export(str(small), "adapter", str(other), "last", CPU)
    state = {name: torch.cat([t, t], -1) if "lora_A" in name else t for name, t in load_file(other / FILE).items()}
    from safetensors.torch import save_file

    save_file(state, other / FILE, metadata={"format": "pt"})
    network, _ = network_and_processor(small)
    with pytest.raises(UserError, match="made for another model"):
        load_adapter(network, other)


FILE = "adapter_model.safetensors"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("tuning", ["vision_lora_language_lora", "vision_full_language_full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_form_of_every_family(
    runs: Path, shapes: Path, cache_dir: Path, tmp_path: Path, family: str, tuning: str
) -> None:
    run = start(runs, shapes, cache_dir, f"{family}_{tuning}", f"model={family}", f"tuning={tuning}")
    for form in FORMS:
        if form == "adapter" and "lora" not in tuning:
            with pytest.raises(UserError, match="trained no adapter"):
                export(str(run), form, str(tmp_path / form), "last", CPU)
        else:
            export(str(run), form, str(tmp_path / form), "last", CPU)
