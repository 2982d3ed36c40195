"""Every key that vidtune owns, with its type. A key that is not here is refused when the configuration is composed.

Groups whose values go to a ``_target_`` keep them in a ``dict``; their names are checked against the signature of the
target (``vidtune.config.checks``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


@dataclass
class ModelConfig:
    """One family at one size; see the comments in ``conf/model``."""

    name: str = MISSING
    path: str = MISSING
    tokenizer_path: str = MISSING
    max_length: int = MISSING
    num_frames: int = MISSING
    sampling: str = MISSING
    processor: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Any] = field(default_factory=dict)
    export: dict[str, Any] = field(default_factory=dict)
    exported: dict[str, Any] = field(default_factory=dict)
    opens_with: str = "vidtune"
    prepare: dict[str, Any] | None = None
    suited_tuning: dict[str, str] = field(
        default_factory=lambda: {"vision": "frozen", "connector": "full", "language": "lora"}
    )
    lora_targets: dict[str, str] = field(default_factory=dict)
    lora_parameters: dict[str, Any] = field(default_factory=dict)
    adapter_names: dict[str, Any] | None = None
    read_adapter: dict[str, Any] | None = None
    published: dict[str, str] = field(default_factory=dict)
    num_parameters: float = MISSING
    dtype: str = "float32"


@dataclass
class DataConfig:
    """One data set; see the comments in ``conf/data``."""

    name: str = MISSING
    root: str | None = MISSING
    annotation: str | None = None
    sets: str | None = None
    registry: str | None = None
    mixing: str | None = None
    media_placement: str | None = None
    reader: dict[str, Any] = field(default_factory=dict)
    prepare: dict[str, Any] | None = None
    num_frames: int = MISSING
    sampling: str = MISSING
    limit: int | None = None
    train_split: str = "train"
    val_split: str = "val"
    test_split: str = "test"
    num_workers: int = 0
    task: dict[str, Any] = field(default_factory=dict)


@dataclass
class MediaConfig:
    """Decoding, for all data sets."""

    backend: str = "auto"
    short: str | None = None
    max_bad_fraction: float = 0.01
    deadline_s: float | None = 60.0
    known_bad: str | None = None
    feature_cache: str | None = None
    feature_cache_mode: str = "fill"
    feature_cache_dtype: str | None = None


@dataclass
class BatchConfig:
    """How samples fill rows."""

    max_tokens: int = MISSING
    questions_per_video: int = MISSING
    reduction: str = "token"


@dataclass
class PartPolicy:
    """How one role, or one named part of it, is tuned.

    Args:
        mode: ``frozen``, ``full``, ``layernorm`` (norms only), ``lora`` or ``qlora`` (LoRA on an NF4 base).
        rank, alpha, dropout: of LoRA.
        targets: full-match regular expression on module paths; null for the family's own (``model.lora_targets``).
        lr_ratio: factor on ``optim.lr``.
        weight_decay: null for ``optim.weight_decay``.
        schedule: what differs from ``optim.schedule`` for this part: ``+tuning.vision.schedule={name: constant}``.
        freeze_layers: layers of this part that stay as they are: ``0..20``, both ends included, or ``0..3,12``.
        dtype: of what trains, its gradients and its moments. ``bfloat16`` halves them, and loses every step that is
            smaller than about 1/512 of its weight: at a learning rate of 2e-5 most weights then never change.
    """

    mode: str = "frozen"
    rank: int | None = None
    alpha: float | None = None
    dropout: float = 0.0
    targets: str | None = None
    lr_ratio: float = 1.0
    weight_decay: float | None = None
    schedule: dict[str, Any] = field(default_factory=dict)
    freeze_layers: str | None = None
    dtype: str = "float32"


@dataclass
class TuningConfig:
    """A policy per role; ``parts`` refines it per module path (``connector.projection``)."""

    name: str = MISSING
    vision: PartPolicy = field(default_factory=PartPolicy)
    connector: PartPolicy = field(default_factory=PartPolicy)
    language: PartPolicy = field(default_factory=PartPolicy)
    new_tokens: PartPolicy = field(default_factory=PartPolicy)
    parts: dict[str, PartPolicy] = field(default_factory=dict)


@dataclass
class OptimConfig:
    """Optimizer and schedule."""

    name: str = MISSING
    lr: float = MISSING
    weight_decay: float = 0.0
    optimizer: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)


@dataclass
class StrategyConfig:
    """Lightning strategy; ``config`` is a DeepSpeed JSON of the user."""

    name: str = MISSING
    config: str | None = None
    strategy: dict[str, Any] | None = None


@dataclass
class HardwareConfig:
    """Devices, precision, memory facts."""

    name: str = MISSING
    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    precision: str = "32-true"
    memory_gb: float | None = None
    activation_checkpointing: bool = False
    tf32: bool = False
    selective_recompute: float = 1.0
    num_threads: int | None = None
    attention: str = "auto"
    peak_tflops: float | None = None


@dataclass
class TrainerConfig:
    """Length and cadence of a run."""

    epochs: float = 1.0
    max_steps: int | None = None
    grad_clip: float | None = 1.0
    log_every: int = 10
    val_every: int | None = None
    val_samples: int = 0
    checkpoint_every: int | None = None
    checkpoint_every_epochs: float | None = None
    keep_checkpoints: int = 2
    keep_gb: float | None = None
    early_stopping: int | None = None
    monitor: str = "val/accuracy"
    monitor_mode: str = "max"
    deterministic: bool = True


@dataclass
class EvalConfig:
    """How answers are made and scored."""

    scoring: str = "generate"
    batch_size: int = 16
    max_new_tokens: int = 16
    limit: int | None = None
    controls: bool = False
    report_samples: int = 100


@dataclass
class PathsConfig:
    """Where things lie."""

    runs_dir: str = "runs"
    data_dir: str = "data"
    cache_dir: str = ".cache"


@dataclass
class BaseConfig:
    """What training and evaluation share: the input recipe and the machine."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    media: MediaConfig = field(default_factory=MediaConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    tuning: TuningConfig = field(default_factory=TuningConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    seed: int = 42


@dataclass
class Departure:
    """One point in which a recipe departs from what its original's code did.

    Args:
        here, original: what happens here, and what happened there.
        restore: dotted key -> value with which the original's way comes back; null where no setting brings it back.
    """

    here: str = MISSING
    original: str = MISSING
    restore: dict[str, Any] | None = None


@dataclass
class TrainConfig(BaseConfig):
    """``python train.py``."""

    departures: dict[str, Departure | None] = field(default_factory=dict)

    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)
    global_batch_size: int | None = None
    micro_batch_size: int | None = None
    accumulation: int | None = None
    run_name: str | None = None
    resume: str | None = None


@dataclass
class EvaluateConfig(BaseConfig):
    """``python evaluate.py``."""

    run: Any = None
    checkpoint: str = "best"
    adapter: Any = None
    untuned: bool = False
    rescore: bool = False
    split: str | None = None
    output: str | None = None


def register() -> None:
    """Make the schemas known to Hydra; called by the entry points before composition."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    store.store(name="evaluate_schema", node=EvaluateConfig)
