"""Splice, loss, gradients, optimizer steps and answers of the original."""

from __future__ import annotations

import pytest
import torch

from tests.families.video_chatgpt.test_golden_text import request_template
from vidtune.contracts import IGNORE
from vidtune.data.rows import pad_prompts
from vidtune.models.video_chatgpt.key_tables import append_rows
from vidtune.models.video_chatgpt.projector_file import export_projector, load_projector


@pytest.fixture(params=["eager", "sdpa", "vidtune_packed_sdpa"])
def network(case, request):
    return case.network(request.param)


def close(found, expected, tolerance):
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


def mean_loss(network, batch):
    output = network(batch)
    return output.nll.mean(), output


def check_gradients(network, expected):
    close(network.connector.projection.weight.grad, expected["grad.model.mm_projector.weight"], 1e-5)
    close(network.connector.projection.bias.grad, expected["grad.model.mm_projector.bias"], 1e-5)
    close(network.new_tokens.weight.grad, expected["grad.vid_start_end_rows"], 2e-5)


def test_marker_rows_are_the_mean_of_the_rows_before_them(case):
    new = case.tensors("expected/vocabulary.safetensors")
    llava = case.tensors("expected/delta_applied.safetensors")
    for name, rows in (("model.embed_tokens.weight", "input_rows_new"), ("lm_head.weight", "output_rows_new")):
        assert torch.equal(append_rows(llava[name], new[rows][0])[-3:], new[rows])


def test_batch_gives_the_originals_states_logits_and_loss(case, network):
    expected = case.tensors("expected/batch.safetensors")
    batch = case.batch(case.config["batch"])
    patch = case.processor.tokenizer.convert_tokens_to_ids("<vid_patch>")
    ids = batch.input_ids.clone()
    ids.view(-1)[batch.visual_positions] = patch
    assert torch.equal(ids, expected["input_ids"]) and torch.equal(batch.attention_mask, expected["attention_mask"])
    assert torch.equal(batch.target_ids, expected["labels"][:, 1:][expected["labels"][:, 1:] != IGNORE])

    projected = network.connect(batch.media).view(len(batch.media), -1, network.language.config.hidden_size)
    if "projected" in expected:
        close(projected, expected["projected"], 1e-6)
    else:
        close(projected[0, ::4], expected["projected_row0"], 1e-6)
    text = tuple(expected["text_positions"].T)
    embeddings = network.fused_embeddings(batch)
    assert torch.equal(embeddings[text], expected["inputs_embeds_text"])
    visual = torch.nonzero(ids == patch)
    close(embeddings[tuple(visual.T)], projected.flatten(0, 1), 0)

    hidden, _ = network.decode(embeddings, batch, **network.attention_arguments(batch))
    if "hidden_states" in expected:
        real = expected["attention_mask"]
        close(hidden[real], expected["hidden_states"][real], 6e-5)
    else:
        close(hidden[text], expected["hidden_states_text"], 6e-5)
    logits = network.language.lm_head(hidden)
    if "logits_text" in expected:
        close(logits[text], expected["logits_text"], 1e-4)
    else:
        close(logits[tuple(expected["supervised_positions"].T)], expected["logits_supervised"], 1e-4)

    loss, output = mean_loss(network, batch)
    close(loss, expected["loss"], 1e-5)
    sums = torch.zeros(len(ids)).index_add(0, batch.target_samples, output.nll.detach())
    counts = torch.bincount(batch.target_samples, minlength=len(ids))
    assert torch.equal(counts, expected["supervised_per_row"])
    torch.testing.assert_close(sums, expected["nll_sum_per_row"], atol=1e-3, rtol=1e-6)


def test_gradients_reach_projector_and_marker_rows_as_in_the_original(case, network):
    loss, _ = mean_loss(network, case.batch(case.config["batch"]))
    loss.backward()
    check_gradients(network, case.tensors("expected/gradients.safetensors"))
    trained = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert trained == {"connector.projection.weight", "connector.projection.bias", "new_tokens.weight"}
    facts = case.json("expected/summary.json")["train"]
    for norm, grad in zip(facts["marker_row_gradient_norm"], network.new_tokens.weight.grad):
        assert grad.norm().item() == pytest.approx(norm, abs=1e-4)


def test_batch_with_a_text_only_row_gives_the_originals_gradients(case, network):
    if "mixed_batch" not in case.config:
        pytest.skip("this case stores no mixed batch")
    expected = case.tensors("expected/mixed_batch.safetensors")
    batch = case.batch(case.config["mixed_batch"])
    loss, _ = mean_loss(network, batch)
    close(loss, expected["loss"], 1e-5)
    loss.backward()
    check_gradients(network, expected)
    rows = [case.training_rows()[name] for name in case.config["mixed_batch"]]
    with_video = torch.tensor(["video" in row for row in rows])
    patch = case.processor.tokenizer.convert_tokens_to_ids("<vid_patch>")
    keep = expected["attention_mask"] & (expected["input_ids"] != patch)
    assert not with_video.all()
    hidden, _ = network.decode(network.fused_embeddings(batch), batch, **network.attention_arguments(batch))
    close(hidden[keep], expected["hidden_states_text"], 6e-5)


def test_three_steps_end_in_the_originals_file(case, network, tmp_path):
    facts = case.json("expected/summary.json")["three_steps"]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    batch = case.batch(case.config["batch"])
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=facts["lr"], weight_decay=0.0)
    for expected_loss, expected_norm in zip(facts["losses"], facts["grad_norm_before_clip_1.0"]):
        loss, _ = mean_loss(network, batch)
        assert loss.item() == pytest.approx(expected_loss, abs=1e-5)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        assert norm.item() == pytest.approx(expected_norm, abs=1e-4)
        optimizer.step()
    assert mean_loss(network, batch)[0].item() == pytest.approx(facts["loss_after"], abs=1e-5)

    export_projector(network, tmp_path / "mm_projector.bin")
    saved = torch.load(tmp_path / "mm_projector.bin", weights_only=True)
    assert list(saved) == case.json("expected/summary.json")["saved_keys"]
    for name, expected in case.tensors("expected/video_chatgpt_projector.safetensors").items():
        close(saved[name], expected, 1e-5)
    table = saved["model.embed_tokens.weight"]
    changed = (table != before["language.model.embed_tokens.weight"]).any(1).nonzero().flatten()
    assert changed.tolist() == facts["rows_changed"], "the other rows stay as they are, bit by bit"
    for name, tensor in network.state_dict().items():
        if name.startswith(("language.", "vision.")):
            assert torch.equal(tensor, before[name])


def test_answers_are_the_originals(case, network, tmp_path):
    torch.save(case.tensors("expected/video_chatgpt_projector.safetensors"), tmp_path / "video_chatgpt-7B.bin")
    load_projector(network, tmp_path / "video_chatgpt-7B.bin")
    network.eval()
    stored = case.tensors("expected/inference.safetensors")
    for index, request in enumerate(case.json("expected/inference.json")):
        if "generated_ids" not in request:
            continue
        messages = case.messages([("user", request["question"] + "\n<video>")], request["video"])
        preset = "train" if request_template(case, request) == "vicuna_v1_1" else "infer"
        prompt = case.encode(messages, preset, generation=True)
        batch = pad_prompts([prompt], [case.item(request["video"], stored[f"{index}.features"])], 0)
        with torch.no_grad():
            hidden, _ = network.decode(network.fused_embeddings(batch), batch, **network.attention_arguments(batch))
        # The three columns after these are drawn at random by the original.
        expected = stored[f"{index}.first_step_logits_stored_rows"]
        close(network.language.lm_head(hidden[0, -1])[: len(expected)].detach(), expected, 1e-4)
        answer = network.generate(batch, max_new_tokens=case.config["new_tokens"], do_sample=False)
        assert answer[0].tolist() == request["generated_ids"]
