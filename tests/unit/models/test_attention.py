"""Every execution of packed attention against a dense mask written out token by token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface

from vidtune.models import attention
from vidtune.models.attention import ATTENTION, PackedLayout, resolve_attention

CUDA = torch.cuda.is_available()
# Per row its segments, per segment the lengths of prefix and branches.
ROWS = {
    "one sample": [[37]],
    "several samples": [[5], [1], [130], [20]],
    "questions share a video": [[150, 40, 3, 70, 60, 1]],
    "a long question behind a short video": [[2, 200, 150]],
    "all kinds": [[9], [60, 30, 30, 90], [1, 1, 1], [33]],
}
HEADS = {"multi-head": (4, 4), "grouped": (4, 2), "one key-value head": (4, 1)}


def ids_of(segments: list[list[int]]) -> tuple[Tensor, Tensor]:
    rows = [
        (segment, branch)
        for segment, lengths in enumerate(segments)
        for branch, length in enumerate(lengths)
        for _ in range(length)
    ]
    ids = torch.tensor(rows)
    return ids[None, :, 0], ids[None, :, 1]


def written_out(segment_ids: Tensor, branch_ids: Tensor) -> Tensor:
    """(L, L) mask, one pair after the other, from the sentence in ``Batch``."""
    segments, branches = segment_ids[0].tolist(), branch_ids[0].tolist()
    mask = torch.zeros(len(segments), len(segments), dtype=torch.bool)
    for query in range(len(segments)):
        for key in range(query + 1):
            if segments[query] == segments[key] and branches[key] in (0, branches[query]):
                mask[query, key] = True
    return mask


def softmax_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """(1, L, heads, head_dim) by the formula, in float64."""
    key, value = (states.repeat_interleave(query.shape[1] // key.shape[1], 1) for states in (key, value))
    scores = query @ key.transpose(2, 3) / query.shape[3] ** 0.5
    return (scores.masked_fill(~mask, float("-inf")).softmax(-1) @ value).transpose(1, 2)


def states(length: int, heads: tuple[int, int], grad: bool, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    counts = (heads[0], heads[1], heads[1])
    made = [torch.randn(1, count, length, 16, generator=generator, dtype=dtype) for count in counts]
    return [tensor.requires_grad_(grad) for tensor in made]


@pytest.mark.parametrize("segments", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("choice", ATTENTION)
def test_every_execution_gives_what_the_dense_mask_gives(choice: str, heads: tuple, segments: list) -> None:
    ids = ids_of(segments)
    layout, mask = PackedLayout.build(*ids), written_out(*ids)
    # FlexAttention knows no gradient on a CPU; it is compared without one, and hands training rows to SDPA.
    for grad in (False, True):
        ours = states(mask.shape[0], heads, grad)
        theirs = [tensor.detach().double().requires_grad_(grad) for tensor in ours]
        function = AttentionInterface()[ATTENTION[choice]]
        result, _ = function(torch.nn.Module(), *ours, None, packed_layout=layout)
        expected = softmax_attention(*theirs, mask)
        torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=2e-6)
        if grad:
            weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
            (result * weights).sum().backward()
            (expected * weights).sum().backward()
            for one, other in zip(ours, theirs):
                torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not CUDA, reason="compiled FlexAttention needs a GPU")
@pytest.mark.parametrize("segments", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("choice", ATTENTION)
def test_executions_on_a_gpu_agree_with_the_dense_mask(choice: str, segments: list) -> None:
    ids = [tensor.cuda() for tensor in ids_of(segments)]
    layout, mask = PackedLayout.build(*ids), written_out(*ids).cuda()
    ours = [tensor.detach().cuda().bfloat16().requires_grad_() for tensor in states(mask.shape[0], (4, 2), False)]
    theirs = [tensor.detach().double().requires_grad_() for tensor in ours]
    result, _ = AttentionInterface()[ATTENTION[choice]](torch.nn.Module(), *ours, None, packed_layout=layout)
    expected = softmax_attention(*theirs, mask)
    torch.testing.assert_close(result.double(), expected, rtol=2e-2, atol=2e-2)
    result.sum().backward()
    expected.sum().backward()
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("segments", ROWS.values(), ids=ROWS)
def test_the_layout_says_what_a_batch_promises(segments: list) -> None:
    ids = ids_of(segments)
    assert torch.equal(PackedLayout.build(*ids).dense_mask(ids[0].shape[1]), written_out(*ids))


def test_the_blocks_of_flex_hold_every_visible_pair_and_leave_strangers_out() -> None:
    """The compiled kernel, which needs a GPU for training, computes no pair outside of these blocks."""
    ids = ids_of([[400], [600, 150, 90, 200], [300]])
    layout, mask = PackedLayout.build(*ids), written_out(*ids)
    blocks = layout.block_mask
    size, visited = blocks.BLOCK_SIZE[0], blocks.to_dense()[0, 0].bool()
    in_blocks = visited.repeat_interleave(size, 0).repeat_interleave(size, 1)[: len(mask), : len(mask)]
    assert not (mask & ~in_blocks).any()
    positions = torch.arange(len(mask))
    inside = blocks.mask_mod(0, 0, positions[:, None], positions[None])
    assert torch.equal(inside & in_blocks, mask)
    # Blocks that only touch are counted whole; the causal mask of the row would need 105 of 196.
    assert int(visited.sum()) <= 60


def test_masks_stay_small_when_many_questions_share_a_long_video() -> None:
    """200 questions of 40 tokens behind 1,000: one mask of the segment would hold 81 million pairs."""
    pieces = PackedLayout.build(*ids_of([[1000] + [40] * 200])).pieces
    assert pieces[0].mask is None
    masks = [piece.mask for piece in pieces[1:]]
    assert max(mask.shape[0] for mask in masks) <= 128
    assert sum(mask.numel() for mask in masks) < 10_000_000


class _Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation made."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *(tensor.untyped_storage().nbytes() // 4 for tensor in made)])
        return result


@pytest.mark.parametrize("segments", [[[1000, 40, 40, 40, 40]], [[300], [1000], [40] * 5]], ids=["shared", "packed"])
def test_memory_grows_with_the_row_and_not_with_its_square(segments: list) -> None:
    """Forward and backward with everything twice as long; the scores of the longest segment would be a million."""
    largest = []
    for factor in (1, 2):
        ids = ids_of([[factor * length for length in lengths] for lengths in segments])
        with _Largest() as mode:
            tensors = states(ids[0].shape[1], (2, 2), True)
            attention.sdpa_packed(*tensors, PackedLayout.build(*ids), None, 0.0).sum().backward()
        largest.append(mode.elements)
    assert largest[1] <= 2.1 * largest[0] and largest[1] < 1000 * 1000


def test_flash_gets_each_segment_once_and_never_a_shared_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    """flash-attn runs on GPUs alone; a stand-in with its signature shows what it would be asked."""
    seen = []

    def varlen(q, k, v, starts_q, starts_k, longest_q, longest_k, dropout_p, softmax_scale, causal):
        assert causal and torch.equal(starts_q, starts_k) and starts_q.dtype == torch.int32
        seen.append((starts_q.tolist(), longest_q))
        parts = []
        for start, stop in zip(starts_q.tolist(), starts_q.tolist()[1:]):
            mask = torch.ones(stop - start, stop - start, dtype=torch.bool).tril()
            own = (states[start:stop].transpose(0, 1)[None] for states in (q, k, v))
            parts.append(softmax_attention(*own, mask)[0])
        return torch.cat(parts)

    monkeypatch.setattr(attention, "_flash_function", lambda: varlen)
    real = attention._no_flash
    # The device and the precision are those of this machine; only the rows decide.
    monkeypatch.setattr(attention, "_no_flash", lambda *row: "shared" if "share" in real(*row) else "")
    for segments in ROWS.values():
        ids = ids_of(segments)
        tensors = states(ids[0].shape[1], (4, 2), False)
        result = attention.flash_packed(*tensors, PackedLayout.build(*ids), None, 0.0)
        torch.testing.assert_close(result, softmax_attention(*tensors, written_out(*ids)), rtol=1e-5, atol=2e-6)
    assert seen == [([0, 37], 37), ([0, 5, 6, 136, 156], 130)]


def test_handing_rows_to_sdpa_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    attention._hand_over.cache_clear()
    layout = PackedLayout.build(*ids_of([[4, 3, 2]]))
    with caplog.at_level("INFO"):
        for _ in range(3):
            attention.flash_packed(*states(9, (2, 2), False), layout, None, 0.0)
    assert [record.name for record in caplog.records] == ["vidtune.models.attention"]
    assert "run with sdpa" in caplog.records[0].message


def test_auto_is_an_execution_that_this_machine_has() -> None:
    assert resolve_attention("auto") in ATTENTION.values()
