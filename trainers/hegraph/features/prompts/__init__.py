"""Prompts for CLIP's text encoder: positive and negative templates, and class descriptions."""
