"""``vidtune precompute``: the feature cache filled ahead of any run."""

from __future__ import annotations

import argparse

from vidtune.contracts import UserError
from vidtune.run.compose import compose_config
from vidtune.run.precompute import Shard, precompute


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--splits", nargs="+", help="splits to encode (default: training and validation)")
    parser.add_argument(
        "--preset", choices=("train", "infer"), default="train", help="infer: for evaluation (default: train)"
    )
    parser.add_argument("--shard", default="0/1", help="i/n: part i of n, for n processes at once (default: 0/1)")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="as for train.py: model=... data=... tuning=... media.feature_cache=<folder> "
        "media.feature_cache_dtype=float16",
    )


def run(arguments: argparse.Namespace) -> int:
    cfg = compose_config(arguments.overrides, "train")
    splits = arguments.splits or [split for split in (cfg.data.train_split, cfg.data.val_split) if split]
    bad = precompute(cfg, splits, arguments.preset, parse_shard(arguments.shard))
    for name, reason in bad.items():
        print(f"{name}: {reason}")
    print(f"Features: {cfg.media.feature_cache}; {len(bad)} media could not be read.")
    return 0


def parse_shard(text: str) -> Shard:
    """``0/4`` to (0, 4).

    Raises:
        UserError: not of this form, or i is not below n.
    """
    first, _, count = text.partition("/")
    if not (first.isdigit() and count.isdigit() and int(first) < int(count)):
        raise UserError(f"--shard {text}: expected i/n with i from 0 to n - 1, such as 0/4.")
    return int(first), int(count)
