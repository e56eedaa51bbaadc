"""A trained model: its folder, metadata, support set and model card, the Hugging Face Hub, prediction and export.

Comes in: a fitted classifier with its origin, or a model folder. Goes out: a `SavedModel`, predictions of images, an
ONNX file. Read `saved.py` first, then `folder.py`.
"""
