"""Hugging Face Space of a model: a folder with the page, the model and a copy of this package.

The Space needs no release of this package on PyPI.
"""

import json
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import yaml

from ...features.backbones.identity import AUTO, canonical_name
from ...models.folder import CARD, CONFIG, TENSORS, THUMBNAILS
from ...models.images import ImageModel, backbone_files
from ...models.package import copy_package, requirements
from ...models.thumbnails import own_file, thumbnail_name
from ...utils.errors import UserError
from ...utils.files import writing_folder
from .answer import summary, title

MODEL = "model"
APP = '''\
"""Show the page of the model in this folder. The Space runs this file."""

import sys
from pathlib import Path

from hegraph.commands.demo import main

if __name__ == "__main__":
    sys.exit(main([str(Path(__file__).parent / "{model}"), "--host", "0.0.0.0"{flags}]))
'''


def write_space(
    images: ImageModel, folder: Path, target: Path, backbone: str = "", pretrained: str = "", precision: str = AUTO
) -> None:
    """Write the Space of a model, all or nothing. An existing folder is not overwritten.

    Args:
        images: Model with its backbone.
        folder: Model folder.
        target: Folder to write.
        backbone, pretrained: Backbone, if the model does not name it.
        precision: Arithmetic of the backbone in the Space.

    Raises:
        UserError: If the folder exists, the backbone is loaded from local files, or this package is not installed.
    """
    model = images.model
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise UserError(f"{target} exists and is not overwritten; choose another --space or delete it")
    if files := [file for file in backbone_files(model, backbone, pretrained) if file.is_file()]:
        got = f"expected a backbone that a Space can download, got local weights ({files[0]})"
        raise UserError(f"{got}; upload them to the Hub and use --backbone hf-hub:USER/NAME")
    values = {"--backbone": backbone, "--pretrained": pretrained, "--precision": precision.replace(AUTO, "")}
    flags = "".join(f", {json.dumps(flag)}, {json.dumps(value)}" for flag, value in values.items() if value)
    packages = "\n".join([*requirements(canonical_name(backbone) or model.backbone.model), ""])
    header = {
        "title": title(model), "emoji": "\N{LEFT-POINTING MAGNIFYING GLASS}", "colorFrom": "gray", "colorTo": "yellow",
        "sdk": "gradio", "sdk_version": version("gradio"), "app_file": "app.py", "license": "mit",
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
    }  # fmt: skip
    num_images = 0 if model.classifier.keys is None else len(model.classifier.keys)
    thumbnails = [f"{THUMBNAILS}/{thumbnail_name(position)}" for position in range(num_images)]
    with writing_folder(target) as space:
        for name in (CONFIG, TENSORS, CARD, *thumbnails):
            if (file := own_file(folder, name)) is not None:  # no other files, and no targets of links
                (space / MODEL / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, space / MODEL / name)
        copy_package(space / "hegraph")
        (space / "app.py").write_text(APP.format(model=MODEL, flags=flags), encoding="utf-8")
        (space / "requirements.txt").write_text(packages, encoding="utf-8")
        front = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
        text = f"---\n{front}---\n\n# {title(model)}\n\n{summary(model)}\n"
        (space / "README.md").write_text(text, encoding="utf-8")
