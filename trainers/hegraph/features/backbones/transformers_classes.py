"""Classes of transformers that load. This module does not import transformers, which takes seconds."""

from typing import NamedTuple


class ModelClass(NamedTuple):
    """Class of a model in transformers.

    Attributes:
        name: Name of the class.
        padding: "max_length" pads sentences to the context length, as in the training of the model; "longest" pads them
            to the longest one, and masks the padding; "" for a model without text.
        pooled: Whether the class returns the features of the image as `pooler_output`; otherwise they are its first
            token.
        lower_case: Whether sentences are lower-cased before any tokenizer, as in the training of the model.
    """

    name: str
    padding: str = ""
    pooled: bool = True
    lower_case: bool = False

    @property
    def has_text(self) -> bool:
        """Whether the class encodes text."""
        return bool(self.padding)


CLASSES = {  # by `model_type` in config.json
    "clip": ModelClass("CLIPModel", "max_length"),
    # Also SigLIP 2 of a fixed resolution, whose files name the tokenizer of Gemma, which keeps capitals
    "siglip": ModelClass("SiglipModel", "max_length", lower_case=True),
    "metaclip_2": ModelClass("MetaClip2Model", "max_length"),
    "chinese_clip": ModelClass("ChineseCLIPModel", "longest"),
    "altclip": ModelClass("AltCLIPModel", "longest"),
    "dinov2": ModelClass("Dinov2Model"),
    "dinov2_with_registers": ModelClass("Dinov2WithRegistersModel"),
    "dinov3_vit": ModelClass("DINOv3ViTModel"),
    "dinov3_convnext": ModelClass("DINOv3ConvNextModel"),
    "vit": ModelClass("ViTModel", pooled=False),
}
