"""The Lightning module around any video LLM."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from vidtune.contracts import Batch, NetworkOutput, UserError
from vidtune.models.base import VideoLLM
from vidtune.tuning.groups import parameter_groups
from vidtune.tuning.policy import trainable_state

log = logging.getLogger(__name__)


class NonFiniteError(UserError):
    """The loss or a gradient is not a number; the message names the samples of the step."""


class VideoTuner(L.LightningModule):
    """Trains a network on packed rows.

    Args:
        build: makes the network with its weights, adapted and frozen; called in ``configure_model``, when the strategy
            is ready, with the ``cut`` of a strategy that shards weights. Returns the network and the policy of every
            parameter that trains.
        build_optimizer: parameter groups -> optimizer.
        build_schedule: optimizer, number of steps -> scheduler; where a policy has a schedule, also ``own``: what
            differs per parameter group.
        lr, weight_decay: of the groups whose policy sets none.
        rows_per_step: accumulation x processes.
        num_steps: optimizer steps of the run.
    """

    def __init__(
        self,
        build: Callable[..., tuple[VideoLLM, Mapping[str, Any]]],
        build_optimizer: Callable[..., torch.optim.Optimizer],
        build_schedule: Callable[..., Any],
        *,
        lr: float,
        weight_decay: float,
        rows_per_step: int,
        num_steps: int,
    ) -> None:
        super().__init__()
        self._build, self._build_optimizer, self._build_schedule = build, build_optimizer, build_schedule
        self.lr, self.weight_decay = lr, weight_decay
        self.rows_per_step, self.num_steps = rows_per_step, num_steps
        self.network: VideoLLM | None = None
        self.policies: Mapping[str, Any] = {}
        self.strict_loading = False  # checkpoints hold what trains; on_load_checkpoint is strict about that
        self.step_loss = torch.zeros(())
        self.step_auxiliary: dict[str, Tensor] = {}
        self.step_samples: list[str] = []
        self._restored_rng: list[dict[str, Tensor]] = []

    def configure_model(self) -> None:
        if self.network is None:
            strategy: Any = self.trainer.strategy
            sharded = getattr(strategy, "shards_weights", False)
            self.network, self.policies = self._build(strategy.cut) if sharded else self._build()
            self.network.train()  # Lightning leaves modes as they are; here is decided that frozen parts do not train
            if sharded:
                strategy.shard(self.network)

    def configure_optimizers(self) -> Any:
        assert self.network is not None
        groups = parameter_groups(self.network, self.policies, self.lr, self.weight_decay)
        own = [group.pop("schedule") for group in groups]
        optimizer = self._build_optimizer(groups)
        scheduler = self._build_schedule(optimizer, self.num_steps, **({"own": own} if any(own) else {}))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # ------------------------------------------------------------------ steps

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        assert self.network is not None
        output = self.network(batch)
        task = self._task_loss(batch, output)
        auxiliary = sum(output.auxiliary.values(), torch.zeros((), device=task.device))
        self.step_samples += batch.sample_ids
        self.step_loss = self.step_loss.to(task.device) + task.detach()
        for name, value in output.auxiliary.items():
            self.step_auxiliary[name] = self.step_auxiliary.get(name, 0.0) + value.detach() / self.rows_per_step
        # Lightning divides by the accumulation and the strategy averages over processes: a plain sum of the rows of the
        # step, which is what the planner's normalizer expects, needs the factor. Auxiliary losses are means over rows.
        loss = task * self.rows_per_step + auxiliary
        if not torch.isfinite(loss.detach()):
            raise NonFiniteError(
                f"step {self.global_step}: the loss of samples {', '.join(batch.sample_ids)} is {loss.item()}. Lower "
                f"optim.lr, check these rows with `vidtune preview`, or use a precision with more range."
            )
        return loss

    def _task_loss(self, batch: Batch, output: NetworkOutput) -> Tensor:
        """This row's share of the loss of the optimizer step."""
        if output.nll.numel() == 0:
            # Keeps the row in the graph, so that every process takes part in the backward pass.
            return output.nll.sum()
        assert batch.target_weights is not None
        return (output.nll * batch.target_weights).sum() / batch.normalizer

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuse a gradient that is not finite before it reaches the weights."""
        if (scaler := getattr(self.trainer.precision_plugin, "scaler", None)) is not None:
            # Loss scaling tries scales that are too large; it leaves such a step out and halves the scale.
            if scaler.get_scale() < 1:
                raise NonFiniteError(
                    f"step {self.global_step}: gradients overflow float16 with every loss scale down to 1. Lower "
                    f"optim.lr, or use hardware.precision=bf16-mixed or 32-true."
                )
            return
        gradients = [_local(p.grad) for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if gradients and not torch.isfinite(torch.stack(torch._foreach_norm(gradients))).all():
            graded = ((n, p.grad) for n, p in self.named_parameters() if p.grad is not None)
            names = [n for n, gradient in graded if not torch.isfinite(_local(gradient)).all()]
            raise NonFiniteError(
                f"step {self.global_step}: the gradient of {names[0] if names else 'a shard'} is not finite; the step "
                f"held samples {', '.join(self.step_samples)}. Lower optim.lr or trainer.grad_clip."
            )

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log the loss of the whole optimizer step, summed over its rows and processes."""
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches:
            return
        task = self.all_reduce(self.step_loss, "sum")
        self.log("train/loss", task, prog_bar=True)
        for name, value in self.step_auxiliary.items():
            self.log(f"train/{name}", self.all_reduce(torch.as_tensor(value), "sum"))
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        self.step_loss = torch.zeros(())
        self.step_auxiliary, self.step_samples = {}, []

    def all_reduce(self, value: Tensor, how: str) -> Tensor:
        return self.trainer.strategy.reduce(value.to(self.device), reduce_op=how)

    def on_validation_epoch_start(self) -> None:
        self._val_sums = torch.zeros(4, dtype=torch.float64)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Sums over the subset: the epoch's mean is then exact whatever the rows."""
        assert self.network is not None
        assert batch.target_weights is not None and batch.target_samples is not None
        output = self.network(batch)
        weights = batch.target_weights
        counted = weights > 0
        # A question is right when every token of its answer is the most likely one, given the tokens before it.
        wrong = torch.zeros(len(batch.sample_ids), device=weights.device)
        wrong.index_add_(0, batch.target_samples, (~output.correct & counted).float())
        used = torch.zeros_like(wrong).index_add_(0, batch.target_samples, counted.float()) > 0
        right = ((wrong == 0) & used).sum()
        sums = [(output.nll * weights).sum(), weights.sum(), right.float(), used.sum().float()]
        self._val_sums += torch.stack(sums).cpu().double()

    def on_validation_epoch_end(self) -> None:
        loss, weight, right, questions = self.all_reduce(self._val_sums.float(), "sum").cpu().unbind()
        self.log("val/loss", loss / weight.clamp(min=1e-9), prog_bar=True)
        self.log("val/accuracy", right / questions.clamp(min=1), prog_bar=True)

    # ------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what trains; the frozen weights are where ``model.path`` says."""
        assert self.network is not None
        names = {f"network.{name}" for name in trainable_state(self.network)}
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in names}
        checkpoint["rng_states"] = _from_all_processes(_rng_state())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Strict about what trains.

        Raises:
            ValueError: the checkpoint was made with another tuning policy or family.
        """
        assert self.network is not None
        expected = {f"network.{name}" for name in trainable_state(self.network)}
        found = set(checkpoint["state_dict"])
        if expected != found:
            raise ValueError(
                f"the checkpoint was made with another tuning or model: {len(expected - found)} trained tensors are "
                f"missing ({', '.join(sorted(expected - found)[:3])}), {len(found - expected)} are unexpected "
                f"({', '.join(sorted(found - expected)[:3])}). Use the tuning and model of the run."
            )
        self._restored_rng = checkpoint["rng_states"]
        _count_rows_anew(checkpoint, self.trainer.accumulate_grad_batches)

    def on_train_start(self) -> None:
        """Go on with the random stream of the checkpoint, so that a resumed run draws the same dropout."""
        if len(self._restored_rng) not in (0, self.trainer.world_size):
            log.warning(
                "the checkpoint holds random states of %d processes, and this run has %d: losses go on as before, but "
                "dropout begins a new random stream.",
                len(self._restored_rng),
                self.trainer.world_size,
            )
        if len(self._restored_rng) == self.trainer.world_size:
            state = self._restored_rng[self.trainer.global_rank]
            torch.set_rng_state(state["cpu"])
            if "cuda" in state and torch.cuda.is_available():
                torch.cuda.set_rng_state(state["cuda"])


def _count_rows_anew(checkpoint: dict[str, Any], accumulation: int) -> None:
    """Make Lightning's count of rows that of this run.

    With another number of processes the finished steps were other numbers of rows; Lightning would end the first step
    too early, and the samples of its other rows would be lost.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    # A finished run that goes on with more trainer.max_steps: what was its last row is not this one's.
    progress["is_last_batch"] = False
    rows = checkpoint["global_step"] * accumulation
    for counts in (progress["total"], progress["current"]):
        ready = counts["ready"]
        counts |= {name: rows + count - ready for name, count in counts.items()}


def _local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _rng_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else state


def _from_all_processes(value: Any) -> list[Any]:
    if not torch.distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
