"""Descriptions of image classes: the rules that good ones keep, and a command that asks a chat endpoint for some."""
