"""The method: graph, message passing, closed-form head, cache, and the training of the model.

Comes in: the features of a `FeatureBank`. Goes out: a `HeGraphModel`, and logits for features of test images. Read
`relations.py`, `graph.py`, `layers.py`, `head/`, `cache.py` and `model.py` in this order, then `training/loop.py`.
"""
