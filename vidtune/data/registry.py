"""A user's registry of data sets: a YAML (or JSON) file of name -> how to read it.

Three forms of entries are understood, so that the files of the originals work as they stand:

::

    SampleQA:                            # VILA; media go first, as there
      _target_: llava.data.LLaVADataset
      data_path: /data/qa/dataset.json
      media_dir: /data/qa
    fitness:                             # QEVD's diy_ft_data.json
      root: /data/fit
      annotation: /data/fit/train.jsonl
      repeat_time: 2
    questions:                           # a reader of vidtune with its own arguments
      _target_: vidtune.data.questions.QuestionsReader
      root: /data/q
      annotation: "{split}.jsonl"

Each may add ``num_frames`` and ``sampling`` for its videos.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from vidtune.contracts import Sample, UserError
from vidtune.data.conversations import ConversationsReader

log = logging.getLogger(__name__)

_VILA_TARGETS = ("llava.data.LLaVADataset", "llava.data.dataset_impl.llava.LLaVADataset")
_VILA_KEYS = {"data_path", "media_dir", "is_video", "no_system_prompt", "system_prompt", "resample_on_failure"}
_QEVD_KEYS = {
    "root",
    "media_root",
    "annotation",
    "repeat_time",
    "sampling_strategy",
    "video_read_type",
    "length",
    "data_augment",
}
_QEVD_READERS = ("decord", "opencv", "av", "torchcodec")
"""Values of ``video_read_type`` that mean a video file: all give the same frames, and ``media.backend`` chooses."""
_OURS = {"num_frames", "sampling", "media_position", "val_fraction", "test_fraction"}


@dataclass(frozen=True)
class RegisteredSet:
    """A set of the registry.

    Args:
        read: split name -> samples.
        weight, strategy: the entry's own ``repeat_time`` and ``sampling_strategy``.
        num_frames, sampling: for its videos; None for those of the run.
    """

    read: Callable[[str], list[Sample]]
    weight: float = 1.0
    strategy: str = "all"
    num_frames: int | None = None
    sampling: str | None = None


class Registry:
    """Sets by name.

    Args:
        path: the file.
        val_fraction, test_fraction: shares held back from sets whose annotation names no split.

    Raises:
        UserError: no such file, or it is not a mapping of names.
    """

    def __init__(self, path: str, val_fraction: float = 0.0, test_fraction: float = 0.0) -> None:
        self.path = path
        self.fractions = {"val_fraction": val_fraction, "test_fraction": test_fraction}
        if not Path(path).is_file():
            raise UserError(f"data.registry={path}: there is no such file. Name a YAML file of data sets.")
        try:
            entries = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
        except Exception as error:  # YAML, JSON and interpolation errors have no common base
            raise UserError(f"data.registry={path}: not readable as YAML ({error}).") from error
        if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
            raise UserError(
                f"data.registry={path}: expected set names, each with its keys (data_path, media_dir, ...)."
            )
        self.entries: dict[str, dict[str, Any]] = {str(name): entry for name, entry in entries.items()}

    def get(self, name: str) -> RegisteredSet:
        """The set of this exact name.

        Raises:
            UserError: no such set, or an entry that is none of the three forms.
        """
        if name not in self.entries:
            near = get_close_matches(name, self.entries, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UserError(f"data.sets: no set {name!r} in {self.path}; it has {', '.join(self.entries)}.{hint}")
        entry = self.entries[name]
        target = entry.get("_target_")
        if "data_path" in entry:
            return self._vila(name, entry)
        if target is None and "annotation" in entry:
            return self._qevd(name, entry)
        if target is None or str(target).startswith("llava."):
            raise self._fault(name, "expected data_path and media_dir, root and annotation, or a reader's _target_")
        own = {key: value for key, value in entry.items() if key not in ("num_frames", "sampling")}
        try:
            reader = instantiate({"name": name, **own})
        except InstantiationException as error:
            raise self._fault(name, str(error.__cause__ or error)) from error
        return RegisteredSet(reader, num_frames=entry.get("num_frames"), sampling=entry.get("sampling"))

    def _vila(self, name: str, entry: Mapping[str, Any]) -> RegisteredSet:
        target = entry.get("_target_", _VILA_TARGETS[0])
        if target not in _VILA_TARGETS:
            raise self._fault(name, f"_target_ {target}: only {_VILA_TARGETS[0]} of VILA's classes is understood")
        self._check_keys(name, entry, _VILA_KEYS)
        system = entry.get("system_prompt")
        if system is not None and not isinstance(system, str):
            raise self._fault(name, "system_prompt must be one string; drawing from a list is not supported")
        if entry.get("no_system_prompt"):
            if system is not None:
                raise self._fault(name, "no_system_prompt and system_prompt exclude each other")
            system = ""
        if entry.get("resample_on_failure"):
            log.warning("set %s: resample_on_failure has no effect: bad media count with weight 0.", name)
        return self._conversations(
            name,
            entry,
            root=str(entry.get("media_dir") or ""),
            annotation=str(entry["data_path"]),
            media_position=entry.get("media_position", "first"),
            system_prompt=system,
            is_video=True if entry.get("is_video") else None,
        )

    def _qevd(self, name: str, entry: Mapping[str, Any]) -> RegisteredSet:
        self._check_keys(name, entry, _QEVD_KEYS)
        if entry.get("data_augment"):
            raise self._fault(name, "data_augment: true is not supported; set it to false, or augment the files")
        if (reader := entry.get("video_read_type", "decord")) not in _QEVD_READERS:
            raise self._fault(name, f"video_read_type {reader!r}; expected one of {', '.join(_QEVD_READERS)}")
        return self._conversations(
            name,
            entry,
            root=str(entry.get("media_root") or entry.get("root") or ""),
            annotation=str(entry["annotation"]),
            # The original replaces the tag together with its newline: the model's prompt form alone sets the lines.
            media_position=entry.get("media_position", "first"),
        )

    def _conversations(self, name: str, entry: Mapping[str, Any], **arguments: Any) -> RegisteredSet:
        arguments |= {key: float(entry.get(key, value)) for key, value in self.fractions.items()}
        reader = ConversationsReader(name=name, **arguments)
        return RegisteredSet(
            reader,
            float(entry.get("repeat_time", 1)),
            str(entry.get("sampling_strategy", "all")),
            entry.get("num_frames"),
            entry.get("sampling"),
        )

    def _check_keys(self, name: str, entry: Mapping[str, Any], known: set[str]) -> None:
        known = known | _OURS | {"_target_"}
        if unknown := [key for key in entry if key not in known]:
            raise self._fault(name, f"unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")

    def _fault(self, name: str, what: str) -> UserError:
        return UserError(f"data.registry={self.path}, set {name}: {what}.")
