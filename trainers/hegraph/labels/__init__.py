"""Labels while they are being made: which images to label next, and which labels are wrong."""

SUSPICIOUS = 2.0  # a label whose score is higher seems wrong
