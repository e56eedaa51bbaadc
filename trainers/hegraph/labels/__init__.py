"""Labels while they are being made: which images to label next, and which labels are wrong."""
