"""A trained model becomes an ONNX file, which runs without torch and without this package."""
