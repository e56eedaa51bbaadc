"""Features: the bank file, encoding images and sentences into one, importing Tip-Adapter's caches."""
