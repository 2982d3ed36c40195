"""The supervised-only loss is the full cross-entropy, whatever the chunks, reductions and rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidtune.contracts import IGNORE
from vidtune.data.planner import Planner, SampleSize
from vidtune.models import likelihood
from vidtune.models.likelihood import target_likelihood

WIDTH, VOCABULARY = 12, 37


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "CHUNK", 8)


def full_cross_entropy(hidden: Tensor, head: nn.Module, labels: Tensor) -> Tensor:
    """Sum over supervised positions from the logits of all, as transformers shifts them."""
    return F.cross_entropy(head(hidden[:-1]), labels[1:], ignore_index=IGNORE, reduction="sum")


def gradients(loss: Tensor, *tensors: Tensor) -> list[Tensor]:
    return [gradient.clone() for gradient in torch.autograd.grad(loss, tensors)]


@pytest.mark.parametrize("num_targets", [1, 7, 8, 9, 16, 17, 40])
def test_the_loss_and_its_gradients_are_those_of_full_logits(num_targets: int) -> None:
    torch.manual_seed(num_targets)
    head = nn.Linear(WIDTH, VOCABULARY)
    hidden = torch.randn(60, WIDTH, requires_grad=True)
    chosen = torch.randperm(59)[:num_targets].sort().values
    labels = torch.full((60,), IGNORE)
    labels[chosen + 1] = torch.randint(VOCABULARY, (num_targets,))
    nll, correct = target_likelihood(hidden[chosen], head, labels[chosen + 1])
    expected = full_cross_entropy(hidden, head, labels)
    torch.testing.assert_close(nll.sum(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(correct, head(hidden).argmax(-1)[chosen] == labels[chosen + 1])
    weights = (hidden, head.weight, head.bias)
    for ours, theirs in zip(gradients(nll.sum(), *weights), gradients(expected, *weights)):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_a_row_without_targets_still_calls_the_head_and_gives_zero_gradients() -> None:
    """Under sharding every process must take part in gathering the head's weights."""
    head = nn.Linear(WIDTH, VOCABULARY)
    calls = []
    head.register_forward_hook(lambda *call: calls.append(call))
    hidden = torch.randn(5, WIDTH, requires_grad=True)
    nll, correct = target_likelihood(hidden[:0], head, torch.zeros(0, dtype=torch.long))
    assert len(calls) == 1 and nll.shape == correct.shape == (0,)
    nll.sum().backward()
    assert float(hidden.grad.abs().sum()) == float(head.weight.grad.abs().sum()) == 0.0


def test_half_precision_states_give_a_float32_likelihood() -> None:
    head = nn.Linear(WIDTH, VOCABULARY).bfloat16()
    nll, _ = target_likelihood(torch.randn(20, WIDTH).bfloat16(), head, torch.arange(20))
    assert nll.dtype == torch.float32


@pytest.mark.parametrize("rows_per_step", [1, 2, 4])
@pytest.mark.parametrize("reduction", ["token", "sample"])
def test_the_mean_over_a_step_does_not_depend_on_its_rows(reduction: str, rows_per_step: int) -> None:
    """Sums of rows over the planner's normalizer, against one big batch: mean of tokens, or of sample means."""
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, VOCABULARY)
    counts = [3, 1, 9, 4, 12, 2, 6, 5]
    states = [torch.randn(count, WIDTH, requires_grad=True) for count in counts]
    targets = [torch.randint(VOCABULARY, (count,)) for count in counts]
    sizes = [SampleSize(count + 10, count) for count in counts]
    planner = Planner(
        sizes, global_batch_size=8, rows_per_step=rows_per_step, max_tokens=200, reduction=reduction, seed=3
    )
    total = torch.zeros(())
    for row in planner.step(0):
        samples = [index for segment in row.segments for index in segment]
        weights = [1.0 if reduction == "token" else 1 / counts[i] for i in samples for _ in range(counts[i])]
        nll, _ = target_likelihood(
            torch.cat([states[i] for i in samples]), head, torch.cat([targets[i] for i in samples])
        )
        total = total + (nll * torch.tensor(weights)).sum() / row.normalizer
    losses = [F.cross_entropy(head(one), other, reduction="none") for one, other in zip(states, targets)]
    expected = torch.cat(losses).mean() if reduction == "token" else torch.stack([x.mean() for x in losses]).mean()
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(gradients(total, *states), gradients(expected, *states)):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_an_answer_that_the_model_holds_for_impossible_has_a_finite_loss() -> None:
    """A probability of exp(-400) is no float32; its logarithm is."""
    head = nn.Linear(2, 3, bias=False)
    head.weight.data = torch.tensor([[400.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    hidden = torch.tensor([[1.0, 0.0]], requires_grad=True)
    nll, correct = target_likelihood(hidden, head, torch.tensor([1]))
    nll.sum().backward()
    assert float(nll.detach()) == 400.0 and not bool(correct)
    assert torch.equal(hidden.grad, torch.tensor([[400.0, 0.0]]))


def test_a_head_whose_output_is_needed_again_is_refused_instead_of_getting_a_wrong_gradient() -> None:
    hidden = torch.randn(4, WIDTH, requires_grad=True)
    nll, _ = target_likelihood(hidden, nn.Sequential(nn.Linear(WIDTH, VOCABULARY), nn.Tanh()), torch.arange(4))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        nll.sum().backward()


def test_of_equal_logits_the_first_counts_as_the_models_choice() -> None:
    """As greedy generation has it."""
    head = nn.Linear(WIDTH, VOCABULARY)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    _, correct = target_likelihood(torch.randn(3, WIDTH), head, torch.tensor([0, 1, 36]))
    assert correct.tolist() == [True, False, False]
