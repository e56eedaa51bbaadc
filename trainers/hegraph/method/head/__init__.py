"""The closed-form head, which this implementation adds to the paper's method.

Comes in: normalised features of images and text. Goes out: class weights and offsets that `model.py` adds to the
classifier. Read `closed_form.py`, `trust.py` and `class_offsets.py` in this order. `multilabel.py` is the head for
several labels per image.
"""
