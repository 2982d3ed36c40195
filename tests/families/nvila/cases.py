"""Golden sub-cases: their rows through our processor, their checkpoint as our network.

A case folder is a sub-case or holds several; every folder with an ``options.json`` is one.
"""

from __future__ import annotations

import copy
import json
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.families.golden import golden_cases
from vidtune.contracts import Batch, Encoded, MediaItem, MediaRef, Message, Sample, UserError
from vidtune.data.media_source import MediaSource
from vidtune.data.planner import RowPlan
from vidtune.data.rows import Encoder, RowBuilder, pad_prompts
from vidtune.models.nvila.network import NVILA
from vidtune.models.nvila.processor import NVILAProcessor
from vidtune.models.nvila.weights import build_network, load_weights

FAMILY = "nvila"
TOLERANCE = {"pixels": 1e-6, "tower": 2.5e-5, "embeds": 3e-5, "hidden": 7e-5, "logits": 1e-4, "loss": 1e-5, "sum": 3e-4}
"""Absolute, float32, from the README of the goldens."""
GRADIENT_TOLERANCE = 2e-5
"""Relative, of the norms above 1e-3."""


def folders() -> list[Path]:
    return sorted(options.parent for case in golden_cases(FAMILY) for options in case.rglob("options.json"))


def name_of(folder: Path) -> str:
    return "/".join(folder.parts[folder.parts.index(FAMILY) + 1 :])


@cache
def case_of(folder: Path) -> Case:
    return Case(folder)


class Case:
    """One sub-case.

    The original's answer to a row that its length limit cuts inside the media has no counterpart here: ours refuses
    the row. Such rows are in ``refused``; the batch holds the others.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.options = json.loads((folder / "options.json").read_text())
        self.expected = json.loads((folder / "expected.json").read_text())
        self.tensors = load_file(folder / "expected.safetensors")
        self.is_pyramid = self.options["data_args"]["image_aspect_ratio"] == "dynamic_s2"

    # ---------------------------------------------------------------- ours

    def build_processor(self, **changes: Any) -> NVILAProcessor:
        config, data = self.config, self.options["data_args"]
        settings: dict[str, Any] = dict(
            tokenizer_path=str(self.folder / "model"),
            num_frames=data["num_video_frames"],
            train_template="nvila_original_labels",
            max_length=self.options["model_max_length"],
            image_mode=data["image_aspect_ratio"],
            image_size=config["vision_tower_cfg"]["image_size"],
            patch_size=config["vision_tower_cfg"]["patch_size"],
            fold=3 if "3x3" in config["mm_projector_cfg"]["mm_projector_type"] else 2,
            min_tiles=data["min_tiles"],
            max_tiles=data["max_tiles"],
        )
        if self.is_pyramid:
            settings["scales"] = data["s2_scales"]
        return NVILAProcessor(**(settings | changes))

    def build_network(self) -> NVILA:
        """The network as the original runs it: tables grown, the random rows those that it drew."""
        network = build_network(str(self.folder / "model"), grow_vocabulary=True)
        load_weights(network, str(self.folder / "model"))
        if (self.folder / "llm_resized_rows.safetensors").is_file():
            rows = load_file(self.folder / "llm_resized_rows.safetensors")
            with torch.no_grad():
                for name, drawn in rows.items():
                    network.language.get_parameter(name)[-len(drawn) :] = drawn
        return network.eval()

    @cached_property
    def config(self) -> dict[str, Any]:
        return json.loads((self.folder / "model" / "config.json").read_text())

    @cached_property
    def processor(self) -> NVILAProcessor:
        return self.build_processor()

    @cached_property
    def source(self) -> MediaSource:
        return MediaSource(self.processor)

    @cached_property
    def network(self) -> NVILA:
        return self.build_network()

    # ---------------------------------------------------------------- rows

    @cached_property
    def samples(self) -> list[Sample]:
        return [self._sample(name, row) for name, row in self.options["batch"]]

    @cached_property
    def whole(self) -> list[Encoded]:
        """All rows without the length limit."""
        processor = copy.copy(self.processor)
        processor.max_length = 10**9
        encode = Encoder(processor, self.source, "train")
        return [encode(sample) for sample in self.samples]

    @cached_property
    def refused(self) -> list[int]:
        limit = self.options["model_max_length"]
        return [index for index, encoded in enumerate(self.whole) if encoded.prefix_length > limit]

    @cached_property
    def kept(self) -> list[int]:
        return [index for index in range(len(self.samples)) if index not in self.refused]

    @cached_property
    def encoded(self) -> list[Encoded]:
        """Rows in ``kept``."""
        encode = Encoder(self.processor, self.source, "train")
        return [encode(self.samples[index]) for index in self.kept]

    @cached_property
    def batch(self) -> Batch:
        """Rows in ``kept``, packed."""
        return self.pack(self.kept)

    def pack(self, rows: list[int], normalizer: float | None = None) -> Batch:
        """A row; ``normalizer`` is the denominator of its loss, by default the targets that it holds."""
        builder = RowBuilder(self.samples, Encoder(self.processor, self.source, "train"), self.source, "token")
        targets = sum(self.encoded[self.kept.index(row)].num_targets for row in rows)
        return builder[RowPlan(tuple((row,) for row in rows), normalizer or float(max(targets, 1)), epoch=0, step=0)]

    def items(self, kind: str) -> list[MediaItem]:
        """Media of all rows, refused ones included, in batch order."""
        refs = [ref for sample in self.samples for ref in sample.media if ref.kind == kind]
        return [self.source.load(self.source.plan(ref, 0, "train")) for ref in refs]

    def split(self, packed: Tensor) -> list[Tensor]:
        """(1, sum of lengths, ...) to one tensor per kept row."""
        return list(packed[0].split([encoded.num_tokens for encoded in self.encoded]))

    def prompt(self, request: dict[str, Any]) -> tuple[Encoded, Batch]:
        """A request for generation; the original cuts an image into tiles only where it is the only one."""
        refs = self._refs(request["media"])
        messages = (Message("user", (*refs, request["text"])),)
        encoded = Encoder(self.processor, self.source, "infer")(Sample("request", messages), generation=True)
        items = [self.source.load(plan) for plan in encoded.plans]
        return encoded, pad_prompts([encoded], items, self.processor.pad_id)

    def _refs(self, media: list[dict[str, str]]) -> tuple[MediaRef, ...]:
        tiled = sum(medium["type"] == "image" for medium in media) == 1
        return tuple(MediaRef(str(self.folder / m["path"]), m["type"], tiled=tiled) for m in media)  # type: ignore[arg-type]

    def _sample(self, name: str, row: int) -> Sample:
        """A row of the original's schema as the original reads it: tags removed, media in front."""
        dataset = self.options["datasets"][name]
        rows = _read(self.folder / dataset["data_path"])
        # The release leaves the images of a set with videos whole; the later commit, which ran the S2 cases, does not.
        has_videos = dataset.get("is_video") or any("video" in other for other in rows)
        tiled = self.is_pyramid or not has_videos
        refs = [
            MediaRef(str(self.folder / dataset["media_dir"] / path), kind, tiled=tiled)  # type: ignore[arg-type]
            for key, kind in (("image", "image"), ("images", "image"), ("video", "video"))
            for path in _listed(rows[row].get(key))
        ]
        messages = []
        if dataset.get("system_prompt"):
            messages.append(Message("system", (dataset["system_prompt"],)))
        for turn in rows[row]["conversations"]:
            content: tuple[str | MediaRef, ...] = (_without_tags(turn["value"]),)
            if turn["from"] == "human" and refs:
                content, refs = (*refs, *content), []
            messages.append(Message("user" if turn["from"] == "human" else "assistant", content))
        return Sample(f"{name} {row}", tuple(messages), source=name)


CASES = pytest.mark.parametrize("case", [case_of(folder) for folder in folders()], ids=[*map(name_of, folders())])


def cases_with(file: str) -> pytest.MarkDecorator:
    """Parametrises over the sub-cases that hold a table."""
    found = [pytest.param(case_of(folder), id=name_of(folder)) for folder in folders() if (folder / file).is_file()]
    none = pytest.param(None, marks=pytest.mark.skip(reason=f"no golden case found here holds {file}"))
    return pytest.mark.parametrize("case", found or [none])


def collapse(encoded: Encoded, special: dict[str, int]) -> tuple[list[int], list[int]]:
    """Ids and labels as the original has them before splicing: one id per tile, or one per video."""
    objects = []
    for plan in encoded.plans:
        if plan.info.ref.kind == "video":
            objects.append((special["<vila/video>"], sum(span.num_tokens for span in plan.spans)))
        else:
            objects += [(special["<image>"], span.num_tokens) for span in plan.spans]
    visual = set(encoded.visual_positions)
    ids, labels, position = [], [], 0
    while position < encoded.num_tokens:
        if position in visual:
            token, length = objects.pop(0)
            ids.append(token)
            labels.append(-100)
            position += length
        else:
            ids.append(encoded.input_ids[position])
            labels.append(encoded.labels[position])
            position += 1
    assert not objects
    return ids, labels


def refuses(case: Case, row: int) -> bool:
    """Whether the processor refuses a row with the lengths and the setting in its message."""
    try:
        Encoder(case.processor, case.source, "train")(case.samples[row])
    except UserError as error:
        return "model.max_length" in str(error) and str(case.whole[row].num_tokens) in str(error)
    return False


def ours(name: str) -> str:
    """Our name of a parameter of the original's full state dict."""
    for theirs, mine in (
        ("llm.", "language."),
        ("vision_tower.vision_tower.vision_model.", "vision."),
        ("mm_projector.", "connector."),
    ):
        if name.startswith(theirs):
            return mine + name.removeprefix(theirs)
    raise AssertionError(f"{name}: not a name of the original")


def _read(file: Path) -> list[dict[str, Any]]:
    text = file.read_text()
    return [json.loads(line) for line in text.splitlines()] if file.suffix == ".jsonl" else json.loads(text)


def _listed(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else value or []


def _without_tags(text: str) -> str:
    for tag in ("<image>", "<video>"):
        text = text.replace(tag + "\n", "").replace("\n" + tag, "").replace(tag, "")
    return text.strip()
