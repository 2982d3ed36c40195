"""Single tensors of a checkpoint by name, without holding the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from vidtune.contracts import UserError

_META_FILES = ("params.json", "consolidated.00.pth", "checklist.chk")


class BaseTensors:
    """Names and tensors of a Hugging Face checkpoint folder; tensors come in float16.

    One file is open at a time. Zip-format ``.bin`` files are memory-mapped.

    Raises:
        UserError: the folder holds Meta's own files, or no checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        if any((folder / name).is_file() for name in _META_FILES):
            raise UserError(
                f"{folder}: these are Meta's own LLaMA files; the Hugging Face layout is needed. Convert them once, in "
                f"an environment with transformers 4.x (version 5 no longer has the script):\n"
                f"  python -m transformers.models.llama.convert_llama_weights_to_hf --input_dir {folder} "
                f"--model_size 7B --llama_version 1 --output_dir {folder}-hf\n"
                f"then set --base {folder}-hf."
            )
        self.folder = folder
        self._files = self._list_files()
        self._open_file: Path | None = None
        self._opened: Any = None

    @property
    def names(self) -> set[str]:
        return set(self._files)

    def __getitem__(self, name: str) -> Tensor:
        file = self._files[name]
        if file != self._open_file:
            self._opened, self._open_file = _open(file), file
        found = self._opened[name] if file.suffix == ".bin" else self._opened.get_tensor(name)
        return found.half()

    def _list_files(self) -> dict[str, Path]:
        for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
            if (self.folder / index).is_file():
                weight_map = json.loads((self.folder / index).read_text())["weight_map"]
                return {name: self.folder / Path(file).name for name, file in weight_map.items()}
        for single in ("model.safetensors", "pytorch_model.bin"):
            file = self.folder / single
            if file.is_file():
                return dict.fromkeys(_open(file).keys(), file)
        raise UserError(f"{self.folder}: no checkpoint here. Set --base to LLaMA in Hugging Face layout.")


def _open(file: Path) -> Any:
    try:
        if file.suffix == ".safetensors":
            return safe_open(str(file), framework="pt")
        with file.open("rb") as handle:
            is_zip = handle.read(2) == b"PK"
        return torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:
        raise UserError(f"{file}: this checkpoint file cannot be read ({error}). Download it again.") from error
