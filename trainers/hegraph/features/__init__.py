"""Feature banks: file format, encoding of images and prompts, and import of Tip-Adapter's caches."""
