"""Trainer whose output depends on the images, their order, and all earlier random numbers."""

import torch
from dassl.engine import TRAINER_REGISTRY, TrainerX


@TRAINER_REGISTRY.register()
class Noise(TrainerX):
    def build_model(self):
        pass

    def load_model(self, directory, epoch=None):
        pass

    def model_inference(self, images):
        return images.float().mean(dim=(1, 2, 3)).sin()[:, None] * torch.rand(self.num_classes)
