"""Metrics that compare two texts, each in [0, 1]; those whose data are absent say so instead of guessing."""

from __future__ import annotations

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
