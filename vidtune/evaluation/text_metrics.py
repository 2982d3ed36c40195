"""Metrics that compare two texts, each in [0, 1]; those whose data are absent say so instead of guessing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from vidtune.contracts import UserError
from vidtune.text.answers import normalise


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L F-measure (longest common subsequence of lower-cased words, no stemming).

    Only ``a-z`` and ``0-9`` make words, as in the original scorer: texts in other scripts score 0.
    """
    # Imported here: torchmetrics' text package loads transformers' models, which closed tasks never need.
    from torchmetrics.functional.text import rouge_score

    return float(rouge_score(answer, reference, rouge_keys="rougeL")["rougeL_fmeasure"])


def why_no_meteor() -> str | None:
    """What METEOR lacks on this machine, with the remedy; None where it can be computed."""
    try:
        import nltk
    except ImportError:
        return "the package nltk is not installed (pip install nltk)"
    for folder in ("corpora/wordnet", "corpora/wordnet.zip"):
        try:
            nltk.data.find(folder)
            return None
        except LookupError:
            continue
    return "nltk has no WordNet data (python -m nltk.downloader wordnet)"


def meteor(answer: str, reference: str) -> float:
    """METEOR of nltk on normalised words; call only where ``why_no_meteor()`` is None."""
    from nltk.translate.meteor_score import single_meteor_score

    return float(single_meteor_score(normalise(reference).split(), normalise(answer).split()))


def why_no_bert_score(model: str) -> str | None:
    """What BERTScore lacks on this machine, with the remedy; None where it can be computed. Nothing is downloaded.

    Args:
        model: folder, or name in the Hugging Face cache; empty where the user named none.
    """
    if not model:
        return "no model is named (++data.task.bert_model=<folder of roberta-large>)"
    if Path(model).is_dir():
        return None
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(model, "config.json"), str):
        return None
    return f"{model} is neither a folder nor in the Hugging Face cache"


def bert_scores(answers: Sequence[str], references: Sequence[str], model: str) -> tuple[float, ...]:
    """BERTScore F1 per answer, from the model's last layer, not rescaled (published numbers with ``roberta-large``
    take layer 17); call only where ``why_no_bert_score(model)`` is None.

    Raises:
        UserError: the model cannot be loaded.
    """
    return _bert_scores(tuple(answers), tuple(references), model)


@lru_cache(maxsize=8)  # table and numbers of one evaluation ask for the same ones
def _bert_scores(answers: tuple[str, ...], references: tuple[str, ...], model: str) -> tuple[float, ...]:
    from torchmetrics.functional.text import bert_score

    try:
        found: Any = bert_score(list(answers), list(references), model_name_or_path=model, num_threads=0, verbose=False)
    except (OSError, ValueError) as error:
        raise UserError(f"data.task.bert_model={model}: BERTScore's model cannot be loaded ({error}).") from error
    return tuple(float(value) for value in found["f1"].reshape(-1))
