"""Training of hegraph-mini, the small CLIP that ships with the package.

`trainers/hegraph/features/backbones/mini/README.md` describes its training data, training and accuracy.
"""
