"""Frozen encoders. No other package imports open_clip.

`loading.load_backbone` returns a `base.Backbone`, the interface of every encoder. No other package uses its model,
except for the export and counts of parameters. `identity.backbone_identity` identifies one without loading it. Import
`loading` inside functions, because the libraries take seconds to import.
"""
