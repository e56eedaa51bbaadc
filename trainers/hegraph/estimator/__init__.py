"""The method as a scikit-learn classifier, and the tools for labelling and for choosing a backbone.

Comes in: features or images with their labels, as arrays. Goes out: a fitted `HeGraphClassifier`, suspicious labels,
images to label next, a comparison of backbones. It uses the training code of `experiments/`. Read `classifier.py`
first.
"""
