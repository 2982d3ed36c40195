"""The early-fusion network that every family fills in."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vidtune.contracts import Batch, MediaItem, NetworkOutput
from vidtune.models.attention import PACKED_SDPA, PackedLayout
from vidtune.models.fusion import check_placeholders, fuse
from vidtune.models.generation import generate_from_prefixes
from vidtune.models.last_layer import narrow_last_layer
from vidtune.models.likelihood import target_likelihood
from vidtune.models.shards import is_sharded

ROLES = ("vision", "connector", "language", "new_tokens")


class VideoLLM(nn.Module):
    """A visual encoder, a connector and a causal language model.

    A family assigns ``vision``, ``connector`` and ``language`` (a transformers causal LM with ``model`` and
    ``lm_head``), optionally ``new_tokens`` (a module that owns added embedding rows), and implements ``features`` and
    ``connect``. Both call submodules by their ``forward``: parameters read outside of one are not gathered under
    ZeRO-3 and FSDP2. Roles and their named parts are module paths (``vision.vit``, ``connector.projection``).
    """

    vision: nn.Module
    connector: nn.Module
    language: Any
    expert_share: float = 1.0
    """Part of the stacked experts that a token visits; for the meters."""
    new_tokens: nn.Module  # no default here: a class attribute would hide the submodule that a family assigns
    feature_sink: Callable[[MediaItem], None] | None = None
    """Is shown every item at every stage it reaches; the feature cache takes what it lacks."""

    # ------------------------------------------------------------------ what a family supplies

    @abstractmethod
    def features(self, items: Sequence[MediaItem]) -> list[dict[str, Tensor]]:
        """Run the ``vision`` role once over all items (stage ``pixels``).

        Returns:
            Per item what ``connect`` needs: values and, where they matter, layout (frames, grid, padding mask). This
            is also what the feature cache stores.
        """

    @abstractmethod
    def connect(self, items: Sequence[MediaItem]) -> Tensor:
        """Run the ``connector`` role over all items (stage ``features``): (N, D) in span order."""

    def embed(self, input_ids: Tensor) -> Tensor:
        """(B, L) ids to (B, L, D); families with added rows override it."""
        return self.language.get_input_embeddings()(input_ids)

    def decode(self, embeddings: Tensor, batch: Batch, **kwargs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the decoder: (B, L, D) states after the final norm, and auxiliary losses (already weighted)."""
        output = self.language.model(
            inputs_embeds=embeddings, position_ids=batch.position_ids, use_cache=False, **kwargs
        )
        return output.last_hidden_state, {}

    def unrun_parts(self) -> nn.Module:
        """Parts of the checkpoint that no output depends on and that are not built, on the meta device, under the paths
        that they would have here; for counting. Most families have none."""
        return nn.Module()

    # ------------------------------------------------------------------ shared path

    def set_attention(self, implementation: str = PACKED_SDPA) -> None:
        """Choose how the decoder executes attention; the tower keeps its own."""
        self.language.set_attn_implementation(implementation)

    def forward(self, batch: Batch, return_logits: bool = False) -> NetworkOutput:
        """Likelihood of the supervised tokens of a row.

        Args:
            batch: packed (1, L) row, or padded (B, L) batch.
            return_logits: also compute logits at all positions (parity tests, small inputs).
        """
        if batch.target_positions is None or batch.target_ids is None:
            raise ValueError("forward() needs target_positions and target_ids; use generate() for prompts.")
        check_placeholders(batch)
        embeddings = self.fused_embeddings(batch)
        arguments = self.attention_arguments(batch)
        layout = arguments.get("packed_layout")
        narrow = False
        if layout is not None and not return_logits and self.narrows:
            narrow = narrow_last_layer(self.language.model, layout, batch.target_positions)
        hidden, auxiliary = self.decode(embeddings, batch, **arguments)
        flat = hidden.reshape(-1, hidden.shape[-1])
        states = flat if narrow else flat[batch.target_positions]
        nll, correct = target_likelihood(states, self.language.lm_head, batch.target_ids)
        logits = self.language.lm_head(hidden) if return_logits else None
        return NetworkOutput(nll, correct, auxiliary, logits)

    def fused_embeddings(self, batch: Batch) -> Tensor:
        """(B, L, D) text and visual embeddings in place."""
        embeddings = self.embed(batch.input_ids)
        return fuse(embeddings, self.encode_media(batch.media), batch) if batch.media else embeddings

    @property
    def narrows(self) -> bool:
        """Whether nothing but the task loss reads what the decoder makes, and each process may call modules as its own
        row asks: where weights are sharded, all must call the same."""
        return type(self).decode is VideoLLM.decode and not is_sharded(self)

    def encode_media(self, items: Sequence[MediaItem]) -> Tensor:
        """(N, D) visual embeddings of all items: tower once, connector once, whatever the items are.

        Items that come from the feature cache enter at the stage they were stored at; ``feature_sink`` sees the others
        pass each stage.
        """
        items = self.encode_features(items)
        waiting = [item for item in items if item.stage != "connected"]
        if not waiting:
            return torch.cat([item.tensors["values"] for item in items])
        values = self.connect(waiting)
        if len(waiting) == len(items) and self.feature_sink is None:
            return values
        parts = iter(values.split([item.num_placeholders for item in waiting]))
        done = [item if item.stage == "connected" else item.at("connected", {"values": next(parts)}) for item in items]
        self._offer(done)
        return torch.cat([item.tensors["values"] for item in done])

    def encode_features(self, items: Sequence[MediaItem]) -> list[MediaItem]:
        """The items with those at stage ``pixels`` brought to stage ``features``, the others as they are."""
        waiting = [item for item in items if item.stage == "pixels"]
        if not waiting:
            return list(items)
        # No graph through a frozen tower: activation memory is then that of the language model alone.
        with torch.set_grad_enabled(torch.is_grad_enabled() and _trains(self.vision)):
            tensors = iter(self.features(waiting))
        done = [item.at("features", next(tensors)) if item.stage == "pixels" else item for item in items]
        self._offer(done)
        return done

    def _offer(self, items: Sequence[MediaItem]) -> None:
        if self.feature_sink is not None:
            for item in items:
                self.feature_sink(item)

    def attention_arguments(self, batch: Batch) -> dict[str, Any]:
        """What the decoder's attention needs to know about the layout of the batch."""
        if batch.segment_ids is None:
            return {"attention_mask": batch.attention_mask}
        assert batch.branch_ids is not None
        layout = PackedLayout.build(batch.segment_ids, batch.branch_ids)
        # transformers takes a four-dimensional mask as it is and builds none of its own, which would be (L, L).
        unused = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=batch.input_ids.device)
        return {"attention_mask": unused, "packed_layout": layout}

    @torch.no_grad()
    def generate(
        self, batch: Batch, prefixes: Batch | None = None, prefix_of: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """New ids (B, new tokens) for a left-padded batch of prompts; ``kwargs`` go to transformers' ``generate``.

        With sharded weights every process must call it equally often, and with prefixes where others do; one whose
        answers end early then goes on until all have ended.

        Args:
            prefixes, prefix_of: beginnings that the prompts share; see ``generate_from_prefixes``.
        """
        kwargs["synced_gpus"] = is_sharded(self)
        if prefixes is not None:
            assert prefix_of is not None
            check_placeholders(prefixes)
            beginnings, rest = self.fused_embeddings(prefixes), self.embed(batch.input_ids)
            return generate_from_prefixes(self.language, prefixes, beginnings, batch, rest, prefix_of, **kwargs)
        check_placeholders(batch)
        return self.language.generate(
            inputs_embeds=self.fused_embeddings(batch), attention_mask=batch.attention_mask, **kwargs
        )

    def train(self, mode: bool = True) -> VideoLLM:
        """Frozen parts stay in eval mode: dropout or drop-path in them would add noise that nothing can learn from.

        Layers that compute their activations again in the backward pass do so in training mode only, which they keep;
        what is inside them does not.
        """
        super().train(mode)
        for role in ROLES:
            module = getattr(self, role, None)
            for child in module.modules() if module is not None else ():
                if child.training and any(True for _ in child.parameters()) and not _trains(child):
                    child.eval()
                    for layer in child.modules():
                        layer.training = mode and getattr(layer, "gradient_checkpointing", False)
        return self

    @property
    def dtype(self) -> torch.dtype:
        return next(self.language.parameters()).dtype


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
