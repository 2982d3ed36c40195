"""Strings and ids: chat templates, encoding with labels, answer parsing. No pixels, no models."""
