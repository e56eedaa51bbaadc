"""A trained model on disk: what prediction needs and where it comes from, in one folder that anybody can read."""
