"""Settings of ``hardware`` that hold for a whole process."""

from __future__ import annotations

from typing import Any

import torch


def apply_hardware(hardware: Any) -> None:
    """Set the number of threads, and whether float32 matrix products on GPUs may be computed in TF32.

    TF32 keeps float32's range with a mantissa of 10 bits; convolutions follow cuDNN's own default, which allows it.
    """
    if hardware.num_threads:
        torch.set_num_threads(hardware.num_threads)
    torch.set_float32_matmul_precision("high" if hardware.tf32 else "highest")
