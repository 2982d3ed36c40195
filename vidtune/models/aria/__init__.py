"""Aria: Idefics3 vision tower, cross-attention projector, mixture-of-experts decoder (rhymes-ai/Aria)."""
