"""DeepSpeed's ZeRO under Lightning, on GPUs and on CPU processes, with the checkpoints of every other strategy."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from vidtune.models.shards import place_one_by_one, take_parts
from vidtune.training.whole_files import WholeFiles
from vidtune.training.zero_config import zero_config


class ZeroPrecision(DeepSpeedPrecision):
    """Weights in the dtype they have, bf16 computation by autocast, as without DeepSpeed.

    DeepSpeed's own bf16 mode casts the whole module: what trains would be rounded before every forward, and losses
    would differ from those of the other strategies. Here frozen weights keep the dtype they were loaded in, trained
    ones are fp32, and ZeRO shards both as they are.

    Args:
        autocast: device type of the autocast region; None computes in the dtype of the weights.
    """

    def __init__(self, autocast: str | None) -> None:
        super().__init__("32-true")
        self.autocast = autocast

    def convert_module(self, module: nn.Module) -> nn.Module:
        return module

    def convert_input(self, data: Any) -> Any:
        return data

    def forward_context(self) -> AbstractContextManager:
        return torch.autocast(self.autocast, torch.bfloat16) if self.autocast else nullcontext()


class ZeroStrategy(WholeFiles, DeepSpeedStrategy):
    """ZeRO 1 to 3.

    Checkpoints are one file with full tensors, as of a single process: any strategy and any number of processes can go
    on from them, and evaluation needs no consolidation.

    Args:
        stage: 1 shards the optimizer, 2 also the gradients, 3 also the weights.
        offload_optimizer, offload_parameters: keep that state in host memory.
        config: a DeepSpeed JSON of the user in place of the two above; see ``zero_config``.
    """

    def __init__(
        self, stage: int, offload_optimizer: bool = False, offload_parameters: bool = False, config: str | None = None
    ) -> None:
        if not torch.cuda.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        super().__init__(config=zero_config(stage, offload_optimizer, offload_parameters, config))
        self._group_params: list[list[nn.Parameter]] = []

    # ------------------------------------------------------------------ CPU

    @property
    def on_cpu(self) -> bool:
        return isinstance(self.accelerator, CPUAccelerator)

    @property
    def root_device(self) -> torch.device:
        # DeepSpeed takes the index for the local rank's device number; a CPU has the one.
        return torch.device("cpu", 0) if self.on_cpu else super().root_device

    def setup_environment(self) -> None:
        # Lightning's refuses every accelerator but CUDA.
        DDPStrategy.setup_environment(self)

    def setup_distributed(self) -> None:
        if not self.on_cpu:
            super().setup_distributed()
            return
        import deepspeed

        # Otherwise DeepSpeed compiles an operator at the first start, a minute and a compiler; gloo does without it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    # ------------------------------------------------------------------ model

    def model_sharded_context(self) -> AbstractContextManager:
        """Nothing is sharded while modules are constructed: random initialisation and adapters need whole tensors."""
        self._init_config_if_needed()
        return nullcontext()

    @property
    def shards_weights(self) -> bool:
        return self.zero_stage_3

    def cut(self, value: Tensor) -> Tensor:
        """This process's part of a whole tensor: flat, the last one filled up with zeros."""
        size = -(-value.numel() // self.world_size)
        part = value.flatten()[size * self.global_rank :][:size]
        return nn.functional.pad(part, (0, size - part.numel()))

    def shard(self, network: nn.Module) -> None:
        """Partition the weights, one tensor at a time (stage 3)."""
        import deepspeed

        parts = take_parts(network)
        convert = deepspeed.zero.Init(config_dict_or_path=self.config, dtype=None)
        for name, parameter in place_one_by_one(network, convert.local_device):
            convert._convert_to_deepspeed_param(parameter)
            parameter.partition()
            if name in parts:
                parameter.ds_tensor.copy_(parts.pop(name))

    def _setup_model_and_optimizer(
        self, model: nn.Module, optimizer: Optimizer | None, lr_scheduler: Any = None
    ) -> Any:
        assert optimizer is not None
        # DeepSpeed replaces them by flat partitions; checkpoints are written in terms of the parameters.
        self._group_params = [list(group["params"]) for group in optimizer.param_groups]
        return super()._setup_model_and_optimizer(model, optimizer, lr_scheduler)

    def _initialize_deepspeed_train(self, model: nn.Module) -> None:
        super()._initialize_deepspeed_train(model)
        if self.zero_stage_3:
            network: Any = model.network
            self._keep_whole(network.language.lm_head)

    def _keep_whole(self, head: nn.Module) -> None:
        """Gather the weights of a module once per step, and let its calls pass DeepSpeed by.

        A row with more supervised tokens calls the head more often (``models.likelihood``): gathered at every call, or
        counted by what fetches the next layers ahead, it would wait for processes that do not call it. A parameter that
        DeepSpeed calls persistent is not enough: until it has seen a whole step, it releases those too.
        """
        parameters: list[Any] = list(head.parameters())
        for parameter in parameters:
            parameter.ds_persist = True
            parameter.is_external_param = True  # a tied embedding would release it
            if not any(parameter is kept for kept in self._zero_optimizer.persistent_parameters):
                self._zero_optimizer.persistent_parameters.append(parameter)
        parameters[0].all_gather(parameters)
        for module in head.modules():
            module._forward_pre_hooks.clear()
            module._forward_hooks.clear()

    # ------------------------------------------------------------------ checkpoints

    def lightning_module_state_dict(self) -> dict[str, Tensor]:
        """Full fp32 master copies of what trains, by name; on the first process only."""
        assert self.lightning_module is not None
        from deepspeed.utils import safe_get_full_fp32_param

        state = {}
        for name, parameter in self.lightning_module.named_parameters():
            if parameter.requires_grad:
                value = safe_get_full_fp32_param(parameter)
                if self.is_global_zero:
                    state[name] = value.cpu()
        return state

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state that the plain optimizer would have: full tensors, numbered over the parameters of the groups."""
        from deepspeed.utils import safe_get_full_optimizer_state

        base = self._base_optimizer
        states: dict[int, dict[str, Any]] = {}
        scalars, keys = self._state_template()
        if keys and not self.zero_stage_3:
            self._link_states()
        for number, parameter in enumerate(self._parameters()):
            values = {key: safe_get_full_optimizer_state(parameter, key) for key in keys}
            if keys and self.is_global_zero:
                states[number] = {**scalars, **{key: value.cpu() for key, value in values.items()}}
        groups, start = [], 0
        for group, parameters in zip(base.param_groups, self._group_params):
            options = {key: value for key, value in group.items() if key != "params"}
            groups.append({**options, "params": list(range(start, start + len(parameters)))})
            start += len(parameters)
        return {"state": states, "param_groups": groups}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        for name, parameter in self.lightning_module.named_parameters():
            if parameter.requires_grad:
                self._set_full(parameter, checkpoint["state_dict"][name])

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        (saved,) = checkpoint["optimizer_states"]
        base = self._base_optimizer
        for group, options in zip(base.param_groups, saved["param_groups"], strict=True):
            group.update({key: value for key, value in options.items() if key != "params"})
        if not saved["state"]:
            return
        first = next(iter(saved["state"].values()))
        keys = [key for key, value in first.items() if isinstance(value, Tensor) and value.ndim]
        scalars = {key: value for key, value in first.items() if key not in keys}
        for flat in self._flat_partitions():
            own = {key: value.clone() if isinstance(value, Tensor) else value for key, value in scalars.items()}
            base.state[flat] = {**own, **{key: torch.zeros_like(flat) for key in keys}}
        if not self.zero_stage_3:
            self._link_states()
        for number, parameter in enumerate(self._parameters()):
            for key in keys:
                self._set_full(parameter, saved["state"][number][key], key)

    def _set_full(self, parameter: nn.Parameter, value: Tensor, key: str | None = None) -> None:
        """Write this process's part of a full tensor: of the weight, or of an optimizer state of it."""
        from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state
        from deepspeed.utils.tensor_fragment import safe_set_local_fp32_param, safe_set_local_optimizer_state

        with torch.no_grad():
            if not hasattr(parameter, "ds_id"):
                if key is None:
                    safe_set_full_fp32_param(parameter, value)
                    parameter.data.copy_(value)
                else:
                    safe_set_full_optimizer_state(parameter, value, key)
                return
            part = self.cut(value).to(parameter.ds_tensor.device)
            if key is not None:
                safe_set_local_optimizer_state(parameter, part, key)
                return
            safe_set_local_fp32_param(parameter, part)
            parameter.ds_tensor.data.copy_(part)
            if parameter.ds_status == ZeroParamStatus.AVAILABLE:
                # Small parameters are kept whole.
                parameter.data.copy_(value)

    def _link_states(self) -> None:
        """Tie the flat states to their parameters (stages 1 and 2).

        DeepSpeed does so once, after the step of the first group, when the other groups have no state yet.
        """
        self._zero_optimizer._hp_optimizer_states_linked = False
        self._zero_optimizer._lazy_init_hp_params_optimizer_state()

    @property
    def _zero_optimizer(self) -> Any:
        return self.deepspeed_engine.optimizer

    @property
    def _base_optimizer(self) -> Optimizer:
        return self._zero_optimizer.optimizer

    def _parameters(self) -> Iterator[nn.Parameter]:
        return (parameter for parameters in self._group_params for parameter in parameters)

    def _flat_partitions(self) -> list[Tensor]:
        name = "fp32_partitioned_groups_flat" if self.zero_stage_3 else "single_partition_of_fp32_groups"
        return getattr(self._zero_optimizer, name)

    def _state_template(self) -> tuple[dict[str, Any], list[str]]:
        """Scalars of the optimizer state (the step), and the names of its tensors; both empty before the first step."""
        for flat in self._flat_partitions():
            if state := self._base_optimizer.state.get(flat):
                keys = [key for key, value in state.items() if isinstance(value, Tensor) and value.ndim]
                return {key: value for key, value in state.items() if key not in keys}, keys
        return {}, []
