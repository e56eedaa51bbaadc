"""One file per data set, named as its file in configs/datasets. Each is listed in `registry.py`."""
