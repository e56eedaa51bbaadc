"""Descriptions of image classes: rules for good ones, and a way to get them from a chat endpoint."""
