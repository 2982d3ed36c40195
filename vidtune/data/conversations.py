"""Conversations about images and videos, in the JSON that LLaVA introduced and most data sets follow.

::

    {"video": "clips/1.mp4", "conversations": [{"from": "human", "value": "<video>\\nWhat happens?"},
                                               {"from": "gpt", "value": "A dog jumps."}]}
    {"images": ["a.jpg", "b.jpg"], "messages": [{"role": "user", "content": "What changed?"},
                                                {"role": "assistant", "content": "The light."}]}

A row without ``image``, ``images``, ``video`` or ``videos`` is text only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from vidtune.contracts import MediaRef, Message, Role, Sample, UserError
from vidtune.data.annotations import check_fractions, find_annotation, media_path, read_rows, required, split_of

MediaPosition = Literal["keep", "first"]
_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_TAG = re.compile(r"<(image|video)>")
_KINDS = {"image": "image", "images": "image", "video": "video", "videos": "video"}
_KNOWN = {"id", "conversations", "messages", "question_type", "options", "start", "end", *_KINDS}


class ConversationsReader:
    """Reads conversations of one or more turns; every answer is supervised.

    Args:
        root: folder that media paths are relative to; absolute paths of a row win.
        annotation: ``.json`` or ``.jsonl``, below ``root`` or a path of its own. With ``{split}`` in it there is one
            file per split; without, the rows of one file are divided by ``val_fraction`` and ``test_fraction``, all
            rows about one medium together.
        media_position: ``keep`` puts media where their ``<image>`` and ``<video>`` tags stand and, in a row without
            tags, before the first user turn; ``first`` drops all tags and puts all media before the first user turn,
            images then videos, as VILA does.
        after_inserted: text between media and turn where ``keep`` inserts them.
        system_prompt: replaces the model's own; "" for an empty one, None to leave it alone. A system turn of a row
            wins.
        is_video: True keeps models from cutting the images of the set into tiles; None: where any row has a video.
        val_fraction, test_fraction: shares held back, where the annotation names no split.
        name: name of the set.
    """

    def __init__(
        self,
        root: str,
        annotation: str,
        media_position: MediaPosition = "keep",
        after_inserted: str = "\n",
        system_prompt: str | None = None,
        is_video: bool | None = None,
        val_fraction: float = 0.0,
        test_fraction: float = 0.0,
        name: str = "conversations",
    ) -> None:
        if media_position not in get_args(MediaPosition):
            raise UserError(
                f"data.reader.media_position={media_position!r}; expected one of {', '.join(get_args(MediaPosition))}."
            )
        check_fractions(val_fraction, test_fraction)
        self.root, self.annotation, self.name = Path(root), annotation, name
        self.media_position, self.after_inserted, self.system_prompt = media_position, after_inserted, system_prompt
        self.is_video = is_video
        self.val_fraction, self.test_fraction = val_fraction, test_fraction

    def __call__(self, split: str) -> list[Sample]:
        """Samples of a split, in file order.

        Raises:
            UserError: see ``read_rows``; a row without turns, with an unknown role, whose first turn is an answer, or
                whose tags and media differ in number; two rows with one id.
        """
        path = find_annotation(self.root, self.annotation, split)
        rows = read_rows(path)
        whole_images = any(key in row for row in rows for key in ("video", "videos"))
        tiled = not (whole_images if self.is_video is None else self.is_video)
        by_file = "{split}" in self.annotation
        samples: list[Sample] = []
        seen: dict[str, int] = {}
        for number, row in enumerate(rows, start=1):
            sample_id = str(row.get("id", number))
            media = self._media(row, f"{path}, row {number}", tiled)
            key = media[0].path if media else sample_id
            if not by_file and split_of(key, self.val_fraction, self.test_fraction) != split:
                continue
            if sample_id in seen and media and "id" in row:
                sample_id = f"{sample_id}:{number}"  # LLaVA's own files give several questions of an image one id
            seen[sample_id] = number
            samples.append(self._sample(row, sample_id, media, f"{path}, row {number}"))
        return samples

    def _media(self, row: Mapping[str, Any], where: str, tiled: bool) -> list[MediaRef]:
        """All media of a row: images, then videos, each list in its order."""
        refs: list[MediaRef] = []
        for key, kind in _KINDS.items():
            value = row.get(key)
            entries = value if isinstance(value, list) else [] if value is None else [value]
            for entry in entries:
                path = entry.get("path") if isinstance(entry, Mapping) else entry
                if not isinstance(path, str) or not path:
                    raise UserError(f"{where}: {key}={entry!r}; expected a path or a list of paths.")
                full = media_path(self.root, path)
                if kind == "image":
                    refs.append(MediaRef(full, "image", tiled=tiled))
                else:
                    segment = (row.get("start"), row.get("end")) if len(entries) == 1 else (None, None)
                    refs.append(MediaRef(full, "video", *segment))
        return refs

    def _sample(self, row: Mapping[str, Any], sample_id: str, media: Sequence[MediaRef], where: str) -> Sample:
        turns = read_turns(row, where)
        if self.media_position == "first":
            turns = [(role, without_tags(text) if role == "user" else text) for role, text in turns]
        messages = place_media(turns, media, self.after_inserted if self.media_position == "keep" else "", where)
        if self.system_prompt is not None and messages[0].role != "system":
            messages.insert(0, Message("system", (self.system_prompt,)))
        answer = messages[-1].text if messages[-1].role == "assistant" else ""
        return Sample(
            sample_id=sample_id,
            messages=tuple(messages),
            source=self.name,
            question_type=str(row.get("question_type", "")),
            options=tuple(map(str, row.get("options", ()))),
            answer=answer,
            extra={key: value for key, value in row.items() if key not in _KNOWN},
        )


def read_turns(row: Mapping[str, Any], where: str) -> list[tuple[Role, str]]:
    """(role, text with tags) of every turn; typed content (``{"type": "video"}``) becomes a tag.

    Raises:
        UserError: no turns, an unknown role, or a first turn that is an answer.
    """
    entries = row["messages"] if "messages" in row else required(row, "conversations", where)
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{where}: the conversation holds no turns.")
    turns: list[tuple[Role, str]] = []
    for number, entry in enumerate(entries, start=1):
        place = f"{where}, turn {number}"
        if not isinstance(entry, Mapping):
            raise UserError(f"{place}: expected an object with role and text, found {entry!r}.")
        role = entry["role"] if "role" in entry else required(entry, "from", place)
        if role not in _ROLES:
            raise UserError(f"{place}: role {role!r}; expected one of {', '.join(_ROLES)}.")
        content = entry["content"] if "content" in entry else required(entry, "value", place)
        if isinstance(content, list):
            content = "".join(
                f"<{part['type']}>" if part["type"] in ("image", "video") else str(part.get("text") or "")
                for part in content
            )
        turns.append((_ROLES[role], str(content)))
    first = next((role for role, _ in turns if role != "system"), None)
    if first != "user":
        raise UserError(f"{where}: the conversation begins with {first or 'no turn at all'}; expected a user turn.")
    return turns


def place_media(
    turns: Sequence[tuple[Role, str]], media: Sequence[MediaRef], after_inserted: str, where: str
) -> list[Message]:
    """Turns as messages, media in place of their tags or, without any tag, before the first user turn.

    A tag takes the next medium of its kind; where a row has one kind only, either tag takes it, since many video sets
    write ``<image>``.

    Raises:
        UserError: more or fewer tags than media.
    """
    found = [kind for role, text in turns if role == "user" for kind in _TAG.findall(text)]
    insert = not found and bool(media)
    if found and len(found) != len(media):
        raise UserError(
            f"{where}: {len(found)} <image> or <video> tags but {len(media)} media. Write one tag per medium or none, "
            f"or set data.reader.media_position=first."
        )
    queues = {kind: [ref for ref in media if ref.kind == kind] for kind in ("image", "video")}
    if sorted(found) != sorted(ref.kind for ref in media):
        if len({ref.kind for ref in media}) > 1 and not insert:
            raise UserError(f"{where}: tags {found} do not name the kinds of its media {[ref.kind for ref in media]}.")
        shared = list(media)  # one queue: either tag takes the next medium
        queues = {"image": shared, "video": shared}
    messages = []
    for role, text in turns:
        content: list[str | MediaRef] = []
        if role != "user":
            content = [text]
        elif insert:
            content, insert = [*media, after_inserted + text], False
        else:
            for place, part in enumerate(_TAG.split(text)):
                content.append(queues[part].pop(0) if place % 2 else part)
        messages.append(Message(role, tuple(part for part in content if part != "") or ("",)))
    return messages


def without_tags(text: str) -> str:
    """The turn without media tags, one adjacent newline gone with each, and without white space at its ends."""
    for tag in ("<image>", "<video>"):
        text = text.replace(f"{tag}\n", "").replace(f"\n{tag}", "").replace(tag, "")
    return text.strip()
