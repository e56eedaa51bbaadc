"""HTTP server of a trained model, the command `serve`."""
