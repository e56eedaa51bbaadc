"""A page in the browser to teach a model: classes, images, what to label next, and labels that look wrong."""
