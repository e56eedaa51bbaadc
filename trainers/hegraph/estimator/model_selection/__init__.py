"""Model selection without validation images: compares backbones by exact leave-one-out on the labelled images."""
