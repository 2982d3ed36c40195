"""NVILA and NVILA-Lite: SigLIP tower, token-folding projector, Qwen2, tiled images."""
