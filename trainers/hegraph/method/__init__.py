"""The method: graph, message passing, the two classifiers, the model of all of them. Features in, logits out."""
