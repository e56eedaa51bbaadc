"""Frozen CLIP models. No other package imports open_clip.

`loading.load_backbone` returns a `clip.Backbone`. `identity.backbone_identity` identifies one without loading it.
Import both from their modules, because open_clip takes seconds to import.
"""
