"""From images and class names to a feature bank: frozen backbones, prompts, encoding, and the file of a bank.

Comes in: a `Dataset` and the name of a backbone. Goes out: a `FeatureBank`, the unit features of images and prompts
with their labels. Everything after this package works on tensors. Read `bank.py` first, then `extract.py`.
"""
