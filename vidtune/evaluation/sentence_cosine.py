"""How near two texts are to a sentence encoder; unlike BERTScore it compares whole texts, not their words."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from vidtune.contracts import UserError
from vidtune.evaluation.text_metrics import why_no_bert_score

BATCH = 64


def why_no_sentence_cosine(model: str) -> str | None:
    """What is lacking on this machine, with the remedy; None where it can be computed. Nothing is downloaded."""
    if not model:
        return "no model is named (++data.task.sentence_model=<folder of all-MiniLM-L6-v2>)"
    return why_no_bert_score(model)


@lru_cache(maxsize=8)  # table and numbers of one evaluation ask for the same ones
def sentence_cosines(pairs: tuple[tuple[str, str], ...], model: str) -> tuple[float, ...]:
    """Cosine of the embeddings of each pair, in [-1, 1]: mean over the tokens of the last layer, as
    sentence-transformers pools for all-MiniLM-L6-v2.

    Raises:
        UserError: the model cannot be loaded.
    """
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
        encoder = AutoModel.from_pretrained(model, local_files_only=True).eval()
    except (OSError, ValueError) as error:
        raise UserError(f"data.task.sentence_model={model}: the encoder cannot be loaded ({error}).") from error

    @torch.no_grad()
    def embed(texts: list[str]) -> Tensor:
        tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        states = encoder(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None].to(states.dtype)
        return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)

    found: list[float] = []
    for start in range(0, len(pairs), BATCH):
        part = pairs[start : start + BATCH]
        ours, theirs = (embed([pair[side] for pair in part]) for side in (0, 1))
        found += (ours * theirs).sum(-1).tolist()
    return tuple(found)
