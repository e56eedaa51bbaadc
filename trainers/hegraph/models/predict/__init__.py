"""Prediction of images and feature banks with a trained model."""
