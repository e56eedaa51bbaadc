"""The frozen CLIP models: open_clip's, OpenAI's archives, and mini, which comes with this package."""
