"""Video-ChatGPT: CLIP features of 100 frames pooled over space and time, one linear projector, LLaVA-Lightning 7B."""
