"""Q-Formers with the queries they own: BLIP-2's over a frame, Video-LLaMA's over time."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

QUERY_STD = 0.02


class QueryTransformer(nn.Module):
    """Learned queries that read a sequence by cross-attention.

    Args:
        config: of the Q-Former.
        num_queries: Q, tokens it returns.
        attention: ``sdpa`` or ``eager``.
        dtype: of all parameters.
    """

    def __init__(self, config: Blip2QFormerConfig, num_queries: int, attention: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(1, num_queries, config.hidden_size, dtype=dtype))
        nn.init.normal_(self.queries, std=QUERY_STD)
        self.transformer = Blip2QFormerModel._from_config(config, dtype=dtype, attn_implementation=attention)

    def forward(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, L, W) states and (B, L) bool mask, False where there is nothing to see, to (B, Q, H)."""
        return self.transformer(
            query_embeds=self.queries.expand(states.shape[0], -1, -1),
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
        ).last_hidden_state

    def reset_parameters(self) -> None:
        """Start from random values, as the original's stage 1 does (only BERT's configuration is read there)."""
        nn.init.normal_(self.queries, std=QUERY_STD)
        for module in self.transformer.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=self.transformer.config.initializer_range)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()


class TemporalQFormer(QueryTransformer):
    """A Q-Former over time steps, each marked by a learned position.

    Args:
        max_steps: rows of the position table.
    """

    def __init__(
        self, config: Blip2QFormerConfig, num_queries: int, max_steps: int, attention: str, dtype: torch.dtype
    ) -> None:
        super().__init__(config, num_queries, attention, dtype)
        self.positions = nn.Embedding(max_steps, config.encoder_hidden_size, dtype=dtype)

    def forward(self, values: list[Tensor]) -> Tensor:  # type: ignore[override]
        """Sequences of different lengths in one call, so that every process makes the same calls whatever its row
        holds.

        Args:
            values: per sequence (T, P, W), P tokens per time step; a position is added per step, all tokens of a step
                share it (Video-LLaMA, section 2.1.1).

        Returns:
            (B, Q, H).
        """
        lengths = [len(sequence) for sequence in values]
        padded = nn.utils.rnn.pad_sequence(values, batch_first=True)
        steps = torch.arange(padded.shape[1], device=padded.device)
        states = (padded + self.positions(steps)[None, :, None]).flatten(1, 2)
        mask = None
        if min(lengths) < max(lengths):
            seen = steps[None] < torch.tensor(lengths, device=padded.device)[:, None]
            mask = seen.repeat_interleave(padded.shape[2], dim=1)
        return super().forward(states, mask)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.positions.reset_parameters()
