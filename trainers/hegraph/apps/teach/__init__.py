"""Web page for training a model on a folder of images: classes, label check, and suggestions of images to label."""
