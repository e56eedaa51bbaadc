"""Writes the page of a model as a Hugging Face Space: a folder with everything that it needs but Python's packages.

The package itself is copied into it, since it need not be on PyPI.
"""

from __future__ import annotations

import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import yaml

from ..backbones.identity import AUTO
from ..models.folder import CARD, CONFIG, TENSORS, THUMBNAILS, own_file, thumbnail_name
from ..models.images import ImageModel, backbone_files
from ..utils.errors import UserError
from ..utils.files import writing_folder
from .answer import summary, title

PACKAGE = Path(__file__).parents[1]
MODEL = "model"
# What the page imports, as in pyproject.toml; the Space itself has Gradio
REQUIREMENTS = (
    "torch>=2.4", "torchvision>=0.19", "open_clip_torch>=3.2", "safetensors>=0.4.5", "PyYAML>=6.0", "pydantic>=2.7",
    "numpy>=1.26", "scikit-learn>=1.7", "Pillow>=10.4", "tqdm>=4.70", "huggingface_hub>=0.24", "jinja2>=3.1",
    "requests>=2.31", "filelock>=3.30",
)  # fmt: skip
OF_TOKENIZERS = ("transformers", "sentencepiece")  # needed by the tokenizers of SigLIP and some others
APP = '''\
"""Shows the page of the model that lies beside this file. The Space runs it."""

import sys
from pathlib import Path

from hegraph.demo.__main__ import main

if __name__ == "__main__":
    sys.exit(main([str(Path(__file__).parent / "{model}"), "--host", "0.0.0.0"{flags}]))
'''


def write_space(
    images: ImageModel, folder: Path, target: Path, backbone: str = "", pretrained: str = "", precision: str = AUTO
) -> None:
    """Writes the Space, whole or not at all, and over nothing; the backbone is given where the model does not name it,
    and its precision where the Space should not choose. UserError if the backbone's weights are files of this machine.
    """
    model = images.model
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise UserError(f"{target} is there already, and is not overwritten; choose another --space or delete it")
    if files := [file for file in backbone_files(model, backbone, pretrained) if file.is_file()]:
        raise UserError(
            f"the backbone's weights are files of this machine ({files[0]}), which a Space does not have; put them on "
            "the Hub, and give --backbone hf-hub:USER/NAME"
        )
    given = {"--backbone": backbone, "--pretrained": pretrained, "--precision": precision.replace(AUTO, "")}
    flags = "".join(f", {flag!r}, {value!r}" for flag, value in given.items() if value)
    more = OF_TOKENIZERS if type(images.backbone.tokenizer).__name__ == "HFTokenizer" else ()
    header = {
        "title": title(model), "emoji": "\N{LEFT-POINTING MAGNIFYING GLASS}", "colorFrom": "gray", "colorTo": "yellow",
        "sdk": "gradio", "sdk_version": version("gradio"), "app_file": "app.py", "license": "mit",
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
    }  # fmt: skip
    num_images = 0 if model.classifier.keys is None else len(model.classifier.keys)
    thumbnails = [f"{THUMBNAILS}/{thumbnail_name(position)}" for position in range(num_images)]
    with writing_folder(target) as space:
        for name in (CONFIG, TENSORS, CARD, *thumbnails):
            if (file := own_file(folder, name)) is not None:  # nothing else, and not what a link leads to
                (space / MODEL / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, space / MODEL / name)
        shutil.copytree(PACKAGE, space / "hegraph", ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        (space / "app.py").write_text(APP.format(model=MODEL, flags=flags.replace("'", '"')), encoding="utf-8")
        (space / "requirements.txt").write_text("\n".join([*REQUIREMENTS, *more, ""]), encoding="utf-8")
        front = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
        text = f"---\n{front}---\n\n# {title(model)}\n\n{summary(model)}\n"
        (space / "README.md").write_text(text, encoding="utf-8")
