"""Video-LLaMA (first code base, "Video-LLaMA-2" checkpoints): a Q-Former over the Q-Former tokens of frames."""
