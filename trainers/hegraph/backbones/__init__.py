"""The frozen CLIP models; the only package that imports open_clip.

`loading.load_backbone` gives a `clip.Backbone`; `identity.backbone_identity` says, without loading anything, what tells
one backbone from another. open_clip takes seconds to import, so both are imported from their files.
"""
