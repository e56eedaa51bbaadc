"""Trained models: model folders, metadata, support sets, the Hugging Face Hub, and images as input."""
