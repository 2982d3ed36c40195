"""Published accuracies, said under a table of the same questions."""

from __future__ import annotations

from omegaconf import DictConfig


def published_notes(cfg: DictConfig, split: str) -> list[str]:
    """What ``model.published`` knows about a split of the data set; empty where it knows nothing."""
    text = (cfg.model.get("published") or {}).get(f"{cfg.data.name} {split}")
    return [f"Published: {text}"] if text else []
