"""Runs: configuration to objects, training, evaluation."""

from vidtune.run.evaluate import evaluate
from vidtune.run.train import train

__all__ = ["evaluate", "train"]
