"""A page in the browser to try a trained model: what it says about an image, and why."""
