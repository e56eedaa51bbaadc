"""Tools for labelling: find wrong labels, and suggest the images to label next."""

SUSPICIOUS = 2.0  # score above which a label is reported as suspicious
LEAST_AGREEMENT = 0.5  # share of correctly classified training images, below which a model judges no labels
