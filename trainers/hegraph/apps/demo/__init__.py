"""Web page for trying a trained model, locally or as a Hugging Face Space."""
