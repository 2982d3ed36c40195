"""What happens beside the steps: progress, checkpoints, interruption, bad media, meters."""

from vidtune.training.callbacks.bad_media import BadMediaLedger
from vidtune.training.callbacks.checkpoints import StepCheckpoints
from vidtune.training.callbacks.interrupt import Interrupt
from vidtune.training.callbacks.meters import Meters
from vidtune.training.callbacks.text_log import TextLog

__all__ = ["BadMediaLedger", "Interrupt", "Meters", "StepCheckpoints", "TextLog"]
