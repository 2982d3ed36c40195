"""What goes into the network: ids, labels, frame choice, pixels, positions of patches."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.aria.image_processing_pil_aria import AriaImageProcessorPil

from tests.families.aria.case import CASES, IMAGE_ID, Case, runs, tables
from vidtune.contracts import IGNORE, MediaInfo, MediaRef, Message, UserError
from vidtune.data.rows import pad_prompts
from vidtune.media.sampling import get_sampling
from vidtune.models.aria.images import choose_grid, content_size
from vidtune.models.aria.processor import AriaProcessor
from vidtune.models.aria.vision import position_table


@pytest.mark.parametrize("case, run", runs("train"))
def test_training_ids_labels_and_mask_are_the_originals(case: Case, run: str) -> None:
    expected, padded = case.tensors(run, "collate"), case.padded(run)
    assert torch.equal(padded.input_ids, expected["input_ids"])
    assert torch.equal(padded.labels, expected["labels"])
    assert torch.equal(padded.attention_mask, expected["attention_mask"].bool())


@pytest.mark.parametrize("case, run", runs("train"))
def test_rows_read_and_supervise_what_the_original_does(case: Case, run: str) -> None:
    facts, rows, processor = case.facts(run), case.rows(run), case.processor(run)
    for row, text, supervised, count in zip(
        rows, facts["row_text"], facts["supervised_text"], facts["supervised_tokens"], strict=True
    ):
        labels = [label for label in row.encoded.labels if label != IGNORE]
        assert len(labels) == count
        assert processor.tokenizer.decode(labels) == supervised
        ids = torch.tensor(row.encoded.input_ids)
        ids[row.encoded.visual_positions] = IMAGE_ID
        squares = "<|img|>" * processor.tokens_per_image
        assert processor.tokenizer.decode(ids).replace(squares, "\0") == text.replace(
            f"<|img|>*{processor.tokens_per_image}", "\0"
        )
    indices = [list(plan.frame_indices) for row in rows for plan in row.plans if plan.info.ref.kind == "video"]
    assert indices == facts["frame_indices"]
    images = [item for row in rows for item in row.items]
    crops = [
        span.num_placeholders // processor.tokens_per_image for row in rows for plan in row.plans for span in plan.spans
    ]
    assert crops == facts.get("num_crops", [])
    assert sum(crops) == sum(len(item.tensors["pixel_values"]) for item in images)


@pytest.mark.parametrize("case, run", runs("generate"))
def test_evaluation_prompts_are_tokenised_jointly_as_the_original_does(case: Case, run: str) -> None:
    expected, batch = case.tensors(run, "generate"), case.prompts(run)
    ids = batch.input_ids.clone()
    ids.view(-1)[batch.visual_positions] = IMAGE_ID
    assert torch.equal(ids, expected["input_ids"])
    assert torch.equal(batch.attention_mask, expected["attention_mask"].bool())


@pytest.mark.parametrize("case, run", runs("train", "pixels.safetensors"))
def test_pixels_are_the_originals_to_the_last_bit(case: Case, run: str) -> None:
    facts, rows = case.facts(run), case.rows(run)
    pixels = torch.cat([item.tensors["pixel_values"] for row in rows for item in row.items])
    start, stride = _stride(facts["pixel_sample"])
    expected = case.tensors(run, "pixels")["sample"]
    assert (pixels[:, :, start::stride, start::stride] - expected).abs().max() <= 1e-6
    for square, fact in zip(pixels, facts["pixels"], strict=True):
        raw = square.mul(0.5).add(0.5).mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
        assert hashlib.sha256(raw.tobytes()).hexdigest() == fact["sha256_uint8_hwc"]
        assert square.double().mean((1, 2)).tolist() == pytest.approx(fact["channel_mean"], abs=1e-6)
        assert square.double().square().mean((1, 2)).tolist() == pytest.approx(fact["channel_mean_square"], abs=1e-6)
    for file in sorted((case.root / "expected" / run).glob("preprocessed_*.png")):
        image = np.asarray(Image.open(file).convert("RGB"))
        index = int(file.stem.removeprefix("preprocessed_"))
        restored = pixels[index].mul(0.5).add(0.5).mul(255).round().byte().permute(1, 2, 0)
        assert np.array_equal(restored.numpy(), image)


def _stride(text: str) -> tuple[int, int]:
    """``pixel_values[:, :, 3::7, 3::7]`` -> (3, 7)."""
    start, stride = text.rstrip("]").split(",")[-1].strip().split("::")
    return int(start), int(stride)


@pytest.mark.parametrize("size", [490, 980])
def test_pixels_equal_the_native_pil_processor(size: int) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (37, 61, 3), dtype=np.uint8)
    processor = CASES[0].processor(CASES[0].runs("train")[0], 1)
    processor.max_image_size = size
    plan = processor.plan_media(MediaInfo(MediaRef("x"), 1, 1.0, 1.0, 37, 61), np.random.default_rng(0), "train")
    ours = processor.load_media(plan, [frame]).tensors
    theirs = AriaImageProcessorPil()(Image.fromarray(frame), max_image_size=size, return_tensors="pt")
    assert torch.equal(ours["pixel_values"], theirs["pixel_values"])
    rows, columns = ours["patch_counts"][0]
    mask = theirs["pixel_mask"][0].bool()
    assert (rows, columns) == (-(-int(mask[:, 0].sum()) // 14), -(-int(mask[0].sum()) // 14))


@pytest.mark.parametrize("case, table", tables("frame_indices"))
def test_frame_stride_equals_the_originals_table(case: Case, table: list[dict]) -> None:
    for row in table:
        indices = get_sampling("stride")(row["total_frames"], row["num_frames"], 1.0, np.random.default_rng(0))
        assert indices == row["indices"]


@pytest.mark.parametrize("case, table", tables("resize"))
def test_content_size_truncates_as_the_original_does(case: Case, table: list[dict]) -> None:
    for row in table:
        height, width = content_size(row["height"], row["width"], row["max_image_size"], 336)
        assert (height, width) == (row["content_height"], row["content_width"])
        assert -(-height // 14) == row["valid_patch_rows_of_14"]
        assert -(-width // 14) == row["valid_patch_columns_of_14"]


@pytest.mark.parametrize("case, table", tables("split"))
def test_split_grids_equal_the_originals_table(case: Case, table: list[dict]) -> None:
    for row in table:
        columns, rows = choose_grid(row["height"], row["width"], row["max_image_size"])
        assert [columns, rows] == row["grid_columns_rows"]
        assert columns * rows + 1 == row["crops"]


@pytest.mark.parametrize("case, table", tables("position_ids"))
def test_patch_positions_follow_the_original_not_transformers_5(case: Case, table: list[dict]) -> None:
    positions = position_table(70)
    for row in table:
        count = row["valid_patches"]
        assert positions[count, :count].tolist() == row["position_index"]
        assert positions[count, count:].eq(row["index_given_to_padding_patches"]).all()


def test_patch_positions_differ_from_transformers_5_exactly_where_the_original_does() -> None:
    boundaries, indices = torch.arange(1 / 70, 1.0, 1 / 70), torch.arange(70, dtype=torch.float32)
    different = []
    for count in range(1, 71):
        native = torch.bucketize(
            (indices[:count] * (1.0 / torch.tensor(count))).clamp(max=1 - 1e-6), boundaries, right=True
        )
        if position_table(70)[count, :count].tolist() != native.tolist():
            different.append(count)
    assert [count for count in different if count >= 24] == [49, 58]


def _processor(**options) -> AriaProcessor:
    return AriaProcessor(str(CASES[0].root / "tokenizer"), **options)


def test_an_image_size_that_the_projector_does_not_know_is_refused() -> None:
    with pytest.raises(UserError, match=r"max_image_size=336: the projector knows 490 or 980"):
        _processor(max_image_size=336)


@pytest.mark.parametrize("size, tokens", [(490, 128), (980, 256)])
def test_the_configured_size_reaches_pixels_and_text_alike(size: int, tokens: int) -> None:
    processor = _processor(max_image_size=size, num_frames=2)
    info = MediaInfo(MediaRef("x"), 9, 3.0, 3.0, 30, 40)
    plan = processor.plan_media(info, np.random.default_rng(0), "train")
    item = processor.load_media(plan, [np.zeros((30, 40, 3), np.uint8)] * 2)
    assert plan.num_placeholders == item.num_placeholders == 2 * tokens
    assert item.tensors["pixel_values"].shape == (2, 3, size, size)
    assert plan.frame_indices == (0, 4) and plan.times_s == (0.0, 4 / 3)


def test_truncation_inside_an_image_is_refused_where_the_original_crashes() -> None:
    processor = _processor(max_length=200, num_frames=2)
    info = MediaInfo(MediaRef("x"), 2, 1.0, 2.0, 30, 40)
    plan = processor.plan_media(info, np.random.default_rng(0), "train")
    messages = [Message("user", (info.ref, "why?")), Message("assistant", ("A",))]
    with pytest.raises(UserError, match="max_length is 200"):
        processor.encode(messages, [plan], preset="train")


def test_audio_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="not audio"):
        _processor().plan_media(
            MediaInfo(MediaRef("a.wav", "audio"), 1, 1.0, 1.0, 1, 1), np.random.default_rng(0), "train"
        )


@pytest.mark.parametrize("preset", ["train", "infer"])
def test_a_system_message_is_refused_not_dropped_as_the_original_knows_two_roles_only(preset: str) -> None:
    messages = [Message("system", ("Be brief.",)), Message("user", ("why?",)), Message("assistant", ("A",))]
    with pytest.raises(UserError, match=r"row 3: it has a system message, for which .* no place"):
        _processor().encode(messages, [], preset=preset, name="row 3")


def test_chat_markers_need_not_be_single_tokens_and_padding_is_never_the_end_token() -> None:
    processor = _processor()
    assert len(processor.tokenizer("<|im_end|>", add_special_tokens=False)["input_ids"]) > 1
    assert processor.pad_id == processor.tokenizer.unk_token_id != processor.tokenizer.eos_token_id
    processor.tokenizer.add_special_tokens({"pad_token": "<pad>"})
    assert processor.tokenizer.pad_token_id >= processor.tokenizer.vocab_size
    assert processor.pad_id == processor.tokenizer.unk_token_id


def test_a_pickled_processor_gives_the_same_ids() -> None:
    processor = _processor()
    messages = [Message("user", ("why?\nA. so",)), Message("assistant", ("A",))]
    copy = pickle.loads(pickle.dumps(processor))
    assert copy.encode(messages, [], preset="train") == processor.encode(messages, [], preset="train")


def test_the_answer_ends_at_the_stop_string_and_keeps_legible_characters() -> None:
    processor = _processor()
    ids = processor.tokenizer("B. yes é<|im_end|>\nmore", add_special_tokens=False)["input_ids"]
    assert processor.decode(ids) == "B. yes é"
    assert processor.stop_strings == ["<|im_end|>"]
    broken = processor.tokenizer.convert_tokens_to_ids(["<0xF2>", "<0x3F>", "o"])
    assert processor.decode(broken) == "�?o"


def test_where_pad_is_the_end_token_no_mask_is_made_by_comparing_ids() -> None:
    processor = _processor()
    processor.tokenizer.pad_token = processor.tokenizer.eos_token
    assert processor.pad_id == processor.tokenizer.eos_token_id
    end = processor.tokenizer.eos_token
    prompts = [
        processor.encode([Message("user", (text,))], [], preset="infer", generation=True)
        for text in (f"one{end}two{end}", "a longer question than that")
    ]
    assert prompts[0].input_ids.count(processor.pad_id) == 2
    batch = pad_prompts(prompts, [], processor.pad_id)
    assert batch.attention_mask.sum(1).tolist() == [prompt.num_tokens for prompt in prompts]
    assert batch.attention_mask.sum() == batch.input_ids.ne(processor.pad_id).sum() + 2
    # The answer's end token is supervised although it is the pad token.
    turns = [Message("user", ("why?",)), Message("assistant", (f"A{end}",))]
    labels = processor.encode(turns, [], preset="train").labels
    assert labels.count(processor.pad_id) == 1


def test_ids_beyond_the_embedding_are_refused_at_start_or_with_the_row_that_holds_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ids, up to \d+, lie beyond the 100 embeddings of the model"):
        _processor(num_embeddings=100)
    whole = _processor()
    rows = len(whole.tokenizer)
    whole.tokenizer.add_special_tokens({"pad_token": "<pad>"})
    whole.save_tokenizer(tmp_path)
    # As in several snapshots of the released tokenizer: one id behind the last row, never used for padding.
    processor = AriaProcessor(str(tmp_path), num_embeddings=rows)
    assert processor.tokenizer.pad_token_id == rows > processor.pad_id
    turns = [Message("user", ("why?",)), Message("assistant", ("A<pad>",))]
    with pytest.raises(UserError, match=f"row 7: its text holds '<pad>', a token with id {rows}"):
        processor.encode(turns, [], preset="train", name="row 7")
