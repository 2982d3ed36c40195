"""InternVideo2.5-Chat: InternViT-300M, HiCo token merging (16 tokens a frame), InternLM2.5-7B."""
