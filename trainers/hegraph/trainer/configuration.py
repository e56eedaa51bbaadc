"""Settings of this package from Dassl's configuration, and settings that a run in Dassl refuses."""

from yacs.config import CfgNode

from .. import config_files
from ..baselines import ALL_BASELINES, load_method, method_options
from ..config import Config
from ..datasets.shots import SHOTS_PER_CLASS
from ..features.backbones.identity import encodes_text
from ..utils.option import NODE, OUR_METHOD
from .host import DATASET_REGISTRY

WORKERS = "DATALOADER.NUM_WORKERS"
# Keys of Dassl that would need another training or other images than this package has -> their only value
ONLY_VALUES = {
    "OPTIM.ADAM_BETA1": 0.9, "OPTIM.ADAM_BETA2": 0.999, "OPTIM.STAGED_LR": False, "OPTIM.WARMUP_RECOUNT": True,
    "DATALOADER.K_TRANSFORMS": 1, "DATALOADER.RETURN_IMG0": False, "DATALOADER.TRAIN_X.SAMPLER": "RandomSampler",
    "DATALOADER.TEST.SAMPLER": "SequentialSampler", "INPUT.NO_TRANSFORM": False, "MODEL.INIT_WEIGHTS": "",
}  # fmt: skip


def from_dassl(cfg: CfgNode, method: str = OUR_METHOD) -> Config:
    """Return the checked configuration of a method from Dassl's; errors as in `config_files.load_cfg`.

    A subclass with another name has the options of the method that it derives from. Without worker processes Dassl
    reads images in one thread, where 0 means a thread for each core in this package.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.TRAINER.NAME = method
    workers = cfg.DATALOADER.NUM_WORKERS
    cfg.DATALOADER.NUM_WORKERS = max(workers, 1)
    return config_files.from_dassl(cfg, method_options(method))


def obstacles_in(cfg: Config) -> list[str]:
    """Return the settings that only the runner without Dassl supports, as phrases of an error."""
    data = cfg.data
    checks = {
        f"{data.name or 'no data set'} is none of CoOp's": data.name not in DATASET_REGISTRY.registered_names(),
        "DATASET.UNLABELLED names images that Dassl does not load": data.unlabelled,
        f"CoOp samples equal numbers of images, not {SHOTS_PER_CLASS}": data.shots_per_class,
        "DATASET.GROUP_PATTERN groups images, which Dassl samples one by one": data.group_pattern,
        f"{cfg.backbone.name} encodes images only": not encodes_text(cfg.backbone.name),
        "PROMPTS.SOURCE none is not supported by the trainer of Dassl": not cfg.encoding.has_prompts,
        f"{NODE}.SELECT_ON val trains more than once, which Dassl does not": cfg.run.select_on != "last_step",
    }
    return [obstacle for obstacle, holds in checks.items() if holds]


def refused_keys(cfg: CfgNode) -> list[str]:
    """Return the keys of Dassl that have another than their only value, as phrases of an error."""
    values = config_files.flatten(cfg)
    changed = {key: value for key, value in ONLY_VALUES.items() if values.get(key, value) != value}
    return [f"{key} can only be {value!r}, got {values[key]!r}" for key, value in changed.items()]


def is_coops_own(method: str) -> bool:
    """Whether CoOp has its own trainer of this name."""
    return method in ALL_BASELINES and load_method(method).trainer_of_coop
