"""Chat: prompts, first logits, greedy ids, stop token, batches."""

from __future__ import annotations

import pytest
import torch

from tests.families.internvideo25.support import as_original_ids, assert_near, each_case, golden, network_of
from vidtune.data.rows import pad_prompts
from vidtune.models.internvideo25.weights import build_network, load_weights


def chats(files):
    return enumerate(zip(files.json("chat_inputs.json"), files.json("expected_generation.json")))


def generate(network, processor, batch, max_new_tokens, **options):
    return network.generate(
        batch,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=processor.stop_ids,
        pad_token_id=processor.pad_id,
        **options,
    )


@each_case
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_answers_are_the_originals_and_end_with_the_turn(case, use_cache):
    files, network = golden(case), network_of(case)
    context = files.json("added_tokens.json")["<IMG_CONTEXT>"]
    for number, (request, expected) in chats(files):
        processor, encoded, media = files.chat(number)
        assert as_original_ids(encoded, context) == expected["input_ids"]
        if request["video"]:
            assert list(encoded.plans[0].frame_indices) == expected["frame_indices"]
        batch = pad_prompts([encoded], media, processor.pad_id)
        ids = generate(network, processor, batch, request["max_new_tokens"], use_cache=use_cache)[0].tolist()
        assert ids == expected["generated_ids"]
        assert processor.decode(ids) == expected["response"]


@each_case
@torch.no_grad()
def test_the_first_answer_token_is_chosen_from_the_originals_logits(case):
    files, network = golden(case), network_of(case)
    for number, _ in chats(files):
        processor, encoded, media = files.chat(number)
        batch = pad_prompts([encoded], media, processor.pad_id)
        hidden, _ = network.decode(network.fused_embeddings(batch), batch, **network.attention_arguments(batch))
        logits = network.language.lm_head(hidden)[0, -1]
        assert_near(logits, files.expected[f"g{number}.prompt_last_logits"], 1e-4, f"chat {number}")


@each_case
def test_questions_of_different_lengths_are_answered_together(case):
    files, network = golden(case), network_of(case)
    if not (case / "expected_batch_generation.json").is_file():
        pytest.skip("this case holds no batch")
    expected = files.json("expected_batch_generation.json")
    members = [number for number, (request, _) in chats(files) if request.get("in_batch")]
    prompts = [files.chat(number) for number in members]
    processor = prompts[0][0]
    batch = pad_prompts([p[1] for p in prompts], [item for p in prompts for item in p[2]], processor.pad_id)
    ids = batch.input_ids.clone()
    ids.view(-1)[batch.visual_positions] = files.json("added_tokens.json")["<IMG_CONTEXT>"]
    assert ids.tolist() == expected["input_ids"]
    assert batch.attention_mask.int().tolist() == expected["attention_mask"]
    found = generate(network, processor, batch, max(map(len, expected["generated_ids"])))
    assert found.tolist() == expected["generated_ids"]


@each_case
@torch.no_grad()
def test_generation_stops_at_the_end_of_the_turn_and_at_nothing_else(case):
    """The tokenizer's own end of text is another id, as which the padding counts too."""
    files = golden(case)
    processor, encoded, media = files.chat(0)
    batch = pad_prompts([encoded], media, processor.pad_id)
    network = build_network(str(case)).eval()
    load_weights(network, str(case))
    end = files.json("added_tokens.json").get("<|im_end|>") or processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert processor.stop_ids == [end] and end != processor.tokenizer.eos_token_id
    for favoured, length in ((end, 1), (processor.tokenizer.eos_token_id, 5)):
        hook = network.language.lm_head.register_forward_hook(
            lambda module, inputs, logits, favoured=favoured: logits.index_fill(
                -1, torch.tensor([favoured]), logits.max().item() + 1
            )
        )
        ids = generate(network, processor, batch, 5)[0].tolist()
        hook.remove()
        assert ids == [favoured] * length
        assert processor.decode(ids) == ""
