"""HeGraphAdapter: adapts a frozen CLIP from a few labelled images by message passing on a heterogeneous graph."""
__version__ = "0.1.0"
