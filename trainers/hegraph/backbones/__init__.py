"""The frozen CLIP models, and the only room that knows open_clip.

`loading.load_backbone` gives a `clip.Backbone`; `identity.backbone_identity` says, without loading anything, what tells
one backbone from another. Both are imported from their files: open_clip takes seconds to import, and most of this
package does without it.
"""
