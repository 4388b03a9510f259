"""Sharing: what others need to know and load a model."""
