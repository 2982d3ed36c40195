"""Losses, the packed row and gradients against the original."""

from __future__ import annotations

import pytest
import torch

from tests.families.internvideo25.support import as_original_ids, each_case, golden, network_of, pack, padded
from vidtune.contracts import IGNORE
from vidtune.models.attention import PACKED_SDPA
from vidtune.models.internvideo25.weights import build_network, key_table, load_weights

LOSS = 2e-5
PART_OF_ROLE = {"vit": "vision", "connector": "connector", "llm": "language"}


@each_case
@pytest.mark.parametrize("attention", ["eager", PACKED_SDPA])
@pytest.mark.parametrize("template", ["upstream", "internvl2_5"])
@torch.no_grad()
def test_the_loss_of_every_row_and_their_sample_mean(case, attention, template):
    files, network = golden(case), network_of(case, attention)
    losses = []
    for row in files.video_rows:
        encoded = files.encode(row, template)
        batch = pack([encoded], [files.media(row)])
        nll = network(padded(batch) if attention == "eager" else batch).nll
        name = f"r{row}.{template}"
        assert encoded.num_tokens == files.scalars[f"{name}.length"]
        assert encoded.num_targets == len(nll) == files.scalars[f"{name}.supervised_tokens"]
        assert nll.mean().item() == pytest.approx(files.scalars[f"{name}.loss"], abs=LOSS)
        losses.append(nll.mean())
    assert torch.stack(losses).mean().item() == pytest.approx(files.scalars[f"sample_mean_loss.{template}"], abs=LOSS)


@each_case
@torch.no_grad()
def test_a_packed_row_is_the_originals(case):
    files, network = golden(case), network_of(case)
    if not (case / "expected_packed.json").is_file():
        assert "packed_row_loss.upstream" not in files.scalars
        pytest.skip("this case holds no packed row")
    expected = files.json("expected_packed.json")
    rows = files.video_rows[: len(expected["num_tokens"])]
    samples, media = [files.encode(row) for row in rows], [files.media(row) for row in rows]
    batch = pack(samples, media)
    context = files.json("added_tokens.json")["<IMG_CONTEXT>"]
    assert [id_ for sample in samples for id_ in as_original_ids(sample, context)] == expected["input_ids"]
    assert [label for sample in samples for label in sample.labels] == expected["labels"]
    assert [sample.num_tokens for sample in samples] == expected["num_tokens"]
    assert batch.position_ids[0].tolist() == expected["position_ids"]
    spans = [span for sample in samples for plan in sample.plans for span in plan.spans]
    assert [span.num_placeholders for span in spans] == expected["num_img_tokens"]
    assert [len(plan.frame_indices) for sample in samples for plan in sample.plans] == expected["num_imgs"]
    assert network(batch).nll.mean().item() == pytest.approx(files.scalars["packed_row_loss.upstream"], abs=LOSS)


@each_case
def test_gradients_of_every_tensor_and_of_its_parts(case):
    files = golden(case)
    expected = files.json("expected_grads.json")
    network = build_network(str(case)).eval()
    load_weights(network, str(case))
    for row in expected["rows"]:
        nll = network(pack([files.encode(row)], [files.media(row)])).nll
        (nll.mean() / len(expected["rows"])).backward()
    table = key_table(network.language.config)
    gradients = dict(table.to_theirs((name, p.grad) for name, p in network.named_parameters()))
    for name, norm in expected["grad_norm"].items():
        theirs, _, part = name.partition("#")
        found = gradients[theirs]
        if part:
            ours = [gradient for _, gradient in table.to_ours([(theirs, found)])]
            found = ours["qkv".index(part)]
        assert found.norm().item() == pytest.approx(norm, rel=1e-4, abs=1e-6), name
    for recipe in ("upstream_default", "guide_freeze_vit"):
        total = torch.stack([gradients[name].norm() for name in expected[f"trainable_{recipe}"]]).norm()
        assert total.item() == pytest.approx(expected[f"total_norm_{recipe}"], rel=1e-4), recipe


@each_case
def test_roles_divide_the_tensors_as_the_originals_learning_rate_groups_do(case):
    expected = golden(case).json("expected_grads.json")
    network = network_of(case)
    table = key_table(network.language.config)
    for role in PART_OF_ROLE.values():
        parameters = [(name, p.detach()) for name, p in network.named_parameters() if name.startswith(f"{role}.")]
        theirs = {name for name, _ in table.to_theirs(parameters)}
        assert theirs == {name for name, group in expected["lr_groups"].items() if PART_OF_ROLE[group] == role}
    everything = {name for name, _ in table.to_theirs((n, p.detach()) for n, p in network.named_parameters())}
    assert everything == set(expected["trainable_upstream_default"])
    frozen = everything - set(expected["trainable_guide_freeze_vit"])
    assert {PART_OF_ROLE[expected["lr_groups"][name]] for name in frozen} == {"vision"}


@each_case
def test_an_answer_cut_off_altogether_gives_no_nan(case):
    """The original's mean over no labels is NaN, which its trainer replaces by zero."""
    files, network = golden(case), network_of(case)
    row = files.video_rows[0]
    encoded = files.encode(row, max_length=files.encode(row, max_length=10**6).prefix_length)
    assert set(encoded.labels) == {IGNORE}
    output = network(pack([encoded], [files.media(row)]))
    assert output.nll.shape == (0,) and output.nll.sum().isfinite()
