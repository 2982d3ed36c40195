"""Several registered sets as one: text, images and videos mixed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from vidtune.contracts import MediaRef, Message, Sample, UserError
from vidtune.data.mixing import MIXING, SetShare, parse_sets
from vidtune.data.registry import RegisteredSet, Registry
from vidtune.media import get_sampling


class MixtureReader:
    """Reads the sets of a registry and mixes their training rows; other splits are joined unweighted.

    Args:
        sets: ``A+B*2``: names of the registry with weights.
        registry: the file, see ``vidtune.data.registry``.
        mixing: a rule of ``vidtune.data.mixing``.
        seed: of random picks.
        global_batch_size: samples per optimizer step; the ``nvila`` rule needs it.
        val_fraction, test_fraction: shares held back from sets whose annotation names no split.
        train_split: the split that is mixed by weights.
        name: name of the mixture.
    """

    def __init__(
        self,
        sets: str | None,
        registry: str | None,
        mixing: str = "weights",
        seed: int = 0,
        global_batch_size: int | None = None,
        val_fraction: float = 0.0,
        test_fraction: float = 0.0,
        train_split: str = "train",
        name: str = "mixture",
    ) -> None:
        if not sets or not registry:
            raise UserError(
                "a mixture needs the names of its sets and the file that registers them: data.sets=A+B*2 "
                "data.registry=<file.yaml>."
            )
        if mixing not in MIXING:
            raise UserError(f"data.mixing={mixing!r}; expected one of {', '.join(MIXING)}.")
        self.pairs = parse_sets(sets)
        self.registry = Registry(registry, val_fraction, test_fraction)
        self.mixing, self.seed, self.global_batch_size = mixing, seed, global_batch_size
        self.train_split, self.name = train_split, name
        for set_name, _ in self.pairs:
            registered = self.registry.get(set_name)
            if registered.sampling is not None:
                get_sampling(registered.sampling)

    def __call__(self, split: str) -> list[Sample]:
        """Samples of a split; ids begin with the name of their set, and a row's further copies end with ``#2``, ...

        Raises:
            UserError: from the readers and the mixing rule.
        """
        rows: list[list[Sample]] = []
        shares: list[SetShare] = []
        for name, weight in self.pairs:
            registered = self.registry.get(name)
            rows.append([_in_mixture(sample, name, registered) for sample in registered.read(split)])
            shares.append(SetShare(name, len(rows[-1]), weight * registered.weight, registered.strategy))
        if split != self.train_split:
            unique = {sample.sample_id: sample for samples in rows for sample in samples}
            return list(unique.values())
        copies: Counter[str] = Counter()
        samples = []
        for number, row in MIXING[self.mixing](shares, self.seed, self.global_batch_size):
            sample = rows[number][row]
            copies[sample.sample_id] += 1
            count = copies[sample.sample_id]
            samples.append(sample if count == 1 else replace(sample, sample_id=f"{sample.sample_id}#{count}"))
        return samples


def _in_mixture(sample: Sample, name: str, registered: RegisteredSet) -> Sample:
    """The sample under the set's name, its videos with the set's frame count and policy."""
    messages = sample.messages
    if registered.num_frames is not None or registered.sampling is not None:
        messages = tuple(
            Message(message.role, tuple(_sampled(part, registered) for part in message.content)) for message in messages
        )
    # Tables are by question type: each set has rows of its own there.
    question_type = f"{name}/{sample.question_type}" if sample.question_type else name
    sample_id = f"{name}/{sample.sample_id}"
    return replace(sample, sample_id=sample_id, source=name, question_type=question_type, messages=messages)


def _sampled(part: str | MediaRef, registered: RegisteredSet) -> str | MediaRef:
    if isinstance(part, str) or part.kind != "video":
        return part
    return replace(part, num_frames=registered.num_frames, sampling=registered.sampling)
