"""Names of tensors: theirs to ours, and back.

A table is a list of rules over dotted names. ``{x}`` stands for one name component (a layer index, ``weight``),
``{x*}`` for one or more. Since every rule is a bijection on its names, export is the same table read backwards.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

_FIELD = re.compile(r"\{(\w+)(\*?)\}")


def _compile(pattern: str) -> re.Pattern[str]:
    parts, end = [], 0
    for match in _FIELD.finditer(pattern):
        parts.append(re.escape(pattern[end : match.start()]))
        parts.append(f"(?P<{match[1]}>{'.+' if match[2] else '[^.]+'})")
        end = match.end()
    return re.compile("".join(parts) + re.escape(pattern[end:]))


def _fill(pattern: str, fields: Mapping[str, str]) -> str:
    return _FIELD.sub(lambda match: fields[match[1]], pattern)


@dataclass(frozen=True)
class Rename:
    """One tensor of theirs is one of ours."""

    source: str
    target: str


@dataclass(frozen=True)
class Split:
    """One tensor of theirs is several of ours (packed projections)."""

    source: str
    targets: tuple[str, ...]
    split: Callable[[Tensor], Sequence[Tensor]]
    merge: Callable[..., Tensor]


@dataclass(frozen=True)
class Merge:
    """Several tensors of theirs are one of ours; ``split`` restores them for export."""

    sources: tuple[str, ...]
    target: str
    merge: Callable[..., Tensor]
    split: Callable[[Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class Drop:
    """A tensor of theirs that the network does not have, and why that is right."""

    source: str
    reason: str


Rule = Rename | Split | Merge | Drop


class KeyTable:
    """Rules, tried in order; the first that matches a name decides.

    Args:
        rules: the table, source names on the left.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)

    def to_ours(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Our names for a stream of their tensors; an unmatched name passes unchanged and is reported as unexpected
        by the loader. Parts of a ``Merge`` wait until all have come.

        Raises:
            ValueError: the stream ended before all parts of a merged tensor had come.
        """
        waiting: dict[str, dict[int, Tensor]] = {}
        for name, tensor in tensors:
            rule, index, fields = self._match_source(name)
            match rule:
                case None:
                    yield name, tensor
                case Rename():
                    yield _fill(rule.target, fields), tensor
                case Split():
                    for target, part in zip(rule.targets, rule.split(tensor), strict=True):
                        yield _fill(target, fields), part
                case Merge():
                    target = _fill(rule.target, fields)
                    parts = waiting.setdefault(target, {})
                    parts[index] = tensor
                    if len(parts) == len(rule.sources):
                        del waiting[target]
                        yield target, rule.merge(*(parts[i] for i in range(len(parts))))
        if waiting:
            raise ValueError(f"the checkpoint lacks parts of {', '.join(sorted(waiting))}.")

    def to_theirs(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Their names for a stream of our tensors: the table read backwards.

        Raises:
            ValueError: a name that no rule yields, or parts of a split tensor that never came.
        """
        waiting: dict[str, dict[int, Tensor]] = {}
        for name, tensor in tensors:
            rule, index, fields = self._match_target(name)
            match rule:
                case Rename():
                    yield _fill(rule.source, fields), tensor
                case Merge():
                    for source, part in zip(rule.sources, rule.split(tensor), strict=True):
                        yield _fill(source, fields), part
                case Split():
                    source = _fill(rule.source, fields)
                    parts = waiting.setdefault(source, {})
                    parts[index] = tensor
                    if len(parts) == len(rule.targets):
                        del waiting[source]
                        yield source, rule.merge(*(parts[i] for i in range(len(parts))))
                case _:
                    raise ValueError(f"{name}: no rule of the key table yields this name.")
        if waiting:
            raise ValueError(f"parts of {', '.join(sorted(waiting))} are missing.")

    @cached_property
    def _sources(self) -> list[tuple[re.Pattern[str], Rule, int]]:
        return [
            (_compile(pattern), rule, index)
            for rule in self.rules
            for index, pattern in enumerate(rule.sources if isinstance(rule, Merge) else (rule.source,))
        ]

    @cached_property
    def _targets(self) -> list[tuple[re.Pattern[str], Rule, int]]:
        patterns: list[tuple[re.Pattern[str], Rule, int]] = []
        for rule in self.rules:
            if isinstance(rule, Drop):
                continue
            targets = rule.targets if isinstance(rule, Split) else (rule.target,)
            patterns += [(_compile(pattern), rule, index) for index, pattern in enumerate(targets)]
        return patterns

    def _match_source(self, name: str) -> tuple[Rule | None, int, Mapping[str, str]]:
        return _first_match(self._sources, name)

    def _match_target(self, name: str) -> tuple[Rule | None, int, Mapping[str, str]]:
        return _first_match(self._targets, name)


def _first_match(
    patterns: Sequence[tuple[re.Pattern[str], Rule, int]], name: str
) -> tuple[Rule | None, int, Mapping[str, str]]:
    for pattern, rule, index in patterns:
        if match := pattern.fullmatch(name):
            return rule, index, match.groupdict()
    return None, 0, {}
