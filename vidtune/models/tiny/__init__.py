"""The embedded default: a small video LLM that learns from scratch on a CPU."""
