"""Tools for labelling: find wrong labels, and suggest the images to label next."""

SUSPICIOUS = 2.0  # score above which a label is reported as suspicious
