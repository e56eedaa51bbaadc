"""Export of trained models to ONNX files, which run without torch and without this package."""
