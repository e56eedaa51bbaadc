"""Help of the options of an encoder. This module imports nothing, so that `--help` is fast."""

ENCODER = "image encoder: mini, or a name of open_clip, transformers or timm (see backbones --list)"
WEIGHTS = "weights of the encoder: an open_clip tag, or a file"
