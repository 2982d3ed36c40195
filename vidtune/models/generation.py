"""Greedy generation for prompts that begin with the same video: its keys and values are computed once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from vidtune.contracts import Batch


@torch.no_grad()
def generate_from_prefixes(
    language: Any,
    prefixes: Batch,
    prefix_embeddings: Tensor,
    prompts: Batch,
    prompt_embeddings: Tensor,
    prefix_of: Tensor,
    **kwargs: Any,
) -> Tensor:
    """New ids, those that ``VideoLLM.generate`` gives for the whole prompts.

    Positions need no care: transformers counts the visible tokens of the mask, so that padding between a prefix and
    what follows it takes none.

    Args:
        language: a transformers causal LM.
        prefixes: left-padded (V, P) beginnings with all media.
        prefix_embeddings: (V, P, D), media in place.
        prompts: left-padded (B, L) text that follows them.
        prompt_embeddings: (B, L, D).
        prefix_of: (B,) int64, the prefix that a prompt follows.
        kwargs: go to transformers' ``generate``.

    Returns:
        (B, new tokens) int64.
    """
    assert prefixes.attention_mask is not None and prompts.attention_mask is not None
    cache = DynamicCache(config=language.config)
    language.model(
        inputs_embeds=prefix_embeddings,
        # Without padding no mask is needed, and the causal kernels run.
        attention_mask=None if bool(prefixes.attention_mask.all()) else prefixes.attention_mask,
        position_ids=prefixes.position_ids,
        past_key_values=cache,
        use_cache=True,
    )
    cache.batch_select_indices(prefix_of)
    # Stands for what is cached: transformers cuts as many positions off as the cache holds.
    cached = prompt_embeddings.new_zeros(1, 1, 1).expand(
        len(prompt_embeddings), prefixes.input_ids.shape[1], prompt_embeddings.shape[2]
    )
    return language.generate(
        inputs_embeds=torch.cat([cached, prompt_embeddings], dim=1),
        attention_mask=torch.cat([prefixes.attention_mask[prefix_of], prompts.attention_mask], dim=1),
        past_key_values=cache,
        **kwargs,
    )
