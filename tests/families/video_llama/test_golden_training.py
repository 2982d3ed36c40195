"""Trainable tensors, their gradients and one optimizer step are those of the original."""

import pytest
import torch

from tests.families.video_llama.case import pad_rows
from vidtune.models.video_llama.keys import TRAINED
from vidtune.training.schedules import restarting_cosine


def gradient_specs(case):
    return [spec for spec in case.config["batches"] if spec.get("grad")]


def backward(case, spec):
    """The network after one backward pass, its batch, and its trainable parameters under the original's names."""
    network = case.network(spec["recipe"])
    encoded, media = case.batch_of(spec)
    batch = pad_rows(encoded, case.golden_media(spec) or media)
    network(batch).nll.mean().backward()
    trainable = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    return network, batch, dict(TRAINED.to_theirs(trainable))


def test_recipes_train_exactly_what_the_original_trains(case):
    for spec in gradient_specs(case):
        _, _, trainable = backward(case, spec)
        expected = case.json(f"expected/grads_{spec['name']}.json")["trainable"]
        assert {name: list(parameter.shape) for name, parameter in trainable.items()} == {
            name: entry["shape"] for name, entry in expected.items()
        }


def test_gradients_equal_the_originals(case):
    for spec in gradient_specs(case):
        _, _, trainable = backward(case, spec)
        expected = case.json(f"expected/grads_{spec['name']}.json")["trainable"]
        for name, entry in expected.items():
            norm = trainable[name].grad.norm().item()
            assert abs(norm - entry["grad_norm"]) <= 7e-4 * max(entry["grad_norm"], 1e-3), name
        prefix = f"{spec['name']}/grad/"
        stored = {key.removeprefix(prefix): value for key, value in case.stages.items() if key.startswith(prefix)}
        assert stored
        for name, theirs in stored.items():
            error = (trainable[name].grad - theirs).norm() / max(theirs.norm().item(), 1e-3)
            assert error <= 7e-4, name


def test_one_optimizer_step_moves_as_far_as_the_originals(case):
    run = case.config["run"]
    for spec in gradient_specs(case):
        expected = case.json(f"expected/grads_{spec['name']}.json")
        network, batch, trainable = backward(case, spec)
        # The original spares vectors and everything called bias, ln or bn; with these names that is ndim < 2.
        groups = [
            {"params": [p for p in trainable.values() if p.ndim >= 2], "weight_decay": run["weight_decay"]},
            {"params": [p for p in trainable.values() if p.ndim < 2], "weight_decay": 0.0},
        ]
        for ours, theirs in zip(groups, expected["optimizer_groups"], strict=True):
            assert ours["weight_decay"] == theirs["weight_decay"]
            names = {name for name, p in trainable.items() if any(p is member for member in ours["params"])}
            assert names == set(theirs["names"])
        step = expected["one_step"]
        before = {name: parameter.detach().clone() for name, parameter in trainable.items()}
        torch.optim.AdamW(groups, lr=step["lr"], betas=(0.9, run["beta2"])).step()
        for name, norm in step["update_norm"].items():
            if expected["trainable"][name]["grad_norm"] < 1e-5:
                continue  # key biases: their gradient is rounding, which Adam blows up
            moved = (trainable[name].detach() - before[name]).norm().item()
            assert moved == pytest.approx(norm, rel=4e-3), name
        with torch.no_grad():
            assert network(batch).nll.mean().item() == pytest.approx(step["loss_after_step"], abs=1.5e-4)


def test_the_learning_rate_of_every_iteration_is_the_originals(case):
    for table in case.json("expected/lr_table.json"):
        config = table["config"]
        for epoch, iteration, rate in table["epoch_iter_lr"]:
            factor = restarting_cosine(
                epoch * config["iters_per_epoch"] + iteration,
                total_steps=config["max_epoch"] * config["iters_per_epoch"],
                warmup_steps=config["warmup_steps"],
                min_ratio=config["min_lr"] / config["init_lr"],
                start_ratio=config["warmup_lr"] / config["init_lr"] if config["warmup_lr"] >= 0 else 1.0,
                epoch_steps=config["iters_per_epoch"],
            )
            assert factor * config["init_lr"] == pytest.approx(rate, rel=1e-12), (config, epoch, iteration)
