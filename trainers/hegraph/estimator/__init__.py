"""The method as a scikit-learn classifier, with the training code of the command line (`experiments/`)."""
