"""Model selection without validation images: compares backbones on held-out labelled images."""
