"""How mini was trained, the small CLIP that ships with the package.

`trainers/hegraph/backbones/mini/README.md` says what it is, what it learnt from and how good it is.
"""
