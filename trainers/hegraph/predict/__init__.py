"""Prediction with a trained model: images, lists of images and folders, or a feature bank, to rows of classes."""
