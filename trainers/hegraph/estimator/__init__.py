"""The method as a scikit-learn classifier. It goes the way of the command line, through `experiments/`."""
