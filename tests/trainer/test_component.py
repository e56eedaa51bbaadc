"""HeGraphAdapter as a component of Dassl: a script as in Dassl's README, a subclass, registration and keys.

Against the real Dassl and CoOp where DASSL_ROOT and COOP_ROOT name checkouts, and against a stand-in anywhere.
"""

import json
import re
from pathlib import Path

import pytest
from standin.hosts import NODE, QUICK, ROOT

from trainers.hegraph.commands.train_arguments import parse_arguments
from trainers.hegraph.datasets.splits import read_coop_pickle

pytestmark = pytest.mark.slow

CONFIGURE = """
import json, sys
import trainers.hegraph.trainer
import datasets.caltech101
from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY, build_trainer

def configure(out, *opts):
    cfg = get_cfg_default()
    trainers.hegraph.trainer.extend_cfg(cfg)
    cfg.merge_from_file("configs/datasets/caltech101.yaml")
    cfg.merge_from_file("configs/trainers/HeGraphAdapter/mini.yaml")
    cfg.merge_from_list([*OPTS, "OUTPUT_DIR", OUT + out, "TRAINER.NAME", "HeGraphAdapter", *opts])
    return cfg
"""
SCRIPT = """
trainer = build_trainer(configure("script"))
seen = {"names": trainer.get_model_names(), "groups": len(trainer.optim.param_groups)}
seen["batch"] = sorted(next(iter(trainer.train_loader_x)))
seen["untrained"] = trainer.test(), trainer.test("val")
trainer.train()
seen["trained"] = trainer.test(), trainer.test("val")
images = next(iter(trainer.dm.test_loader))["img"]
features = next(iter(trainer.test_loader))["img"]
seen["shape"] = list(images.shape)
difference = trainer.model_inference(images) - trainer.model_inference(features)
seen["difference"] = difference.abs().max().item()
trainer.save_model(5, OUT + "saved")
again = build_trainer(configure("again"))
again.load_model(OUT + "saved", epoch=6)
seen["loaded"] = again.test(), again.test("val")
only_test = build_trainer(configure("only-test", "DATASET.NUM_SHOTS", -1))
seen["all images"] = only_test.get_model_names()
only_test.load_model(OUT + "script")
seen["tested"] = only_test.test()
print(json.dumps(seen))
"""


def program(host, *parts: str) -> str:
    """Program that begins with the function `configure`."""
    opts = [
        *QUICK,
        "DATASET.ROOT",
        str(host.images),
        "DATASET.NUM_SHOTS",
        "2",
        "SEED",
        "1",
        "DATALOADER.NUM_WORKERS",
        "0",
    ]
    opts += [f"{NODE}.FEATURES.DIR", str(host.folder / "features")]
    names = f"OPTS = {opts!r}\nOUT = {f'{host.folder}/output/'!r}\n"
    return "".join([names, CONFIGURE, *parts])


@pytest.fixture(scope="module")
def seen(host) -> dict:
    """What the script sees."""
    return json.loads(host.prints(program(host, SCRIPT)))


def test_built_trainer_has_a_registered_model(seen):
    assert seen["names"] == ["hegraph"] and seen["groups"] > 0
    assert {"img", "label", "index"} <= {*seen["batch"]}


def test_split_names_what_is_tested(seen, plain):
    record = plain["alone"].record
    assert seen["trained"][0] == pytest.approx(record["accuracy"])
    assert len({tuple(seen[state]) for state in ("untrained", "trained")}) == 2


def test_model_takes_images_of_dassls_loaders(seen):
    assert seen["shape"] == [20, 3, 32, 32]
    assert seen["difference"] < 1e-2  # logits of about 25, from images in another batch


def test_saved_checkpoint_is_loaded_into_a_new_trainer(seen):
    assert seen["loaded"] == seen["trained"]


def test_script_gives_the_adapter_of_the_command_line(host, seen, plain):
    ours = (host.folder / "output" / "script" / "adapter.safetensors").read_bytes()
    assert ours == plain["alone"].result["adapter.safetensors"]


def test_all_images_are_encoded_when_training_begins(seen):
    """CoOp's tests have NUM_SHOTS -1, and load a model folder."""
    assert seen["all images"] == [] and seen["tested"] == seen["trained"][0]


def test_subclass_of_the_page_has_its_loss_schedule_and_data(host, plain):
    page = (ROOT / "docs" / "guides" / "coop.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    [subclass] = [block for block in blocks if "class Smoothed" in block]
    lines = [line for line in subclass.splitlines() if line and "import" not in line]
    assert len(lines) <= 15
    run = """
trainer = build_trainer(configure("subclass", "TRAINER.NAME", "Smoothed", "DATASET.NAME", "MyCaltech"))
trainer.train()
record = trainer.record
rates = trainer.sched.get_last_lr()
print(json.dumps([record["dataset"], record["config"]["TRAINER.NAME"], rates, trainer.training.peak_rates]))
"""
    dataset, name, rates, peaks = json.loads(host.prints(program(host, subclass, run)))
    assert (dataset, name) == ("MyCaltech", "Smoothed")
    assert rates == pytest.approx([peak * 0.1 for peak in peaks])  # one step of the schedule, after five epochs
    ours = (host.folder / "output" / "subclass" / "adapter.safetensors").read_bytes()
    assert ours != plain["alone"].result["adapter.safetensors"]


STUB_OF_WILDS = """
import sys, types
sys.modules["wilds"] = types.ModuleType("wilds")
sys.modules["wilds"].get_dataset = None
"""
OURS = "import trainers.hegraph.trainer\n"
FORK = """
from dassl.engine import TRAINER_REGISTRY, TrainerX
@TRAINER_REGISTRY.register()
class TaskRes(TrainerX):
    pass
"""


@pytest.mark.parametrize("order", [OURS + FORK, FORK + OURS], ids=["ours first", "theirs first"])
def test_trainer_of_a_fork_keeps_its_name(host, order):
    shown = """
before = set(TRAINER_REGISTRY.registered_names())
import trainers.hegraph.trainer.baselines
after = set(TRAINER_REGISTRY.registered_names())
print("TipAdapter" in before, "HeGraphAdapter" in before, "TipAdapter" in after, registered("TaskRes") is TaskRes)
"""
    shown = f"registered = TRAINER_REGISTRY.get\n{shown}"
    assert host.prints(STUB_OF_WILDS + order + shown) == "False True True True"


@pytest.mark.parametrize(("trainer", "unchanged"), [("CoOp", True), ("HeGraphAdapter", False)])
def test_keys_are_added_for_our_trainers_only(host, trainer, unchanged):
    shown = f"""
sys.argv += ["--root", "x", "--trainer", {trainer!r}, "OPTIM.LR", "1"]
cfg = get_cfg_default()
before = str(cfg)
trainers.hegraph.trainer.extend_cfg(cfg)
print(str(cfg) == before)
"""
    assert host.prints(program(host, shown)) == str(unchanged)


def test_no_workers_mean_one_thread(host):
    shown = """
from trainers.hegraph.trainer.configuration import from_dassl
print([from_dassl(configure("x", "DATALOADER.NUM_WORKERS", n)).encoding.num_workers for n in (0, 3)])
"""
    assert host.prints(program(host, shown)) == "[1, 3]"


def test_list_of_imagenet_does_not_follow_the_disk(host):
    images = host.images_again("listed")
    host.run("dassl", "listed", f"{NODE}.VARIANT", "base", data="imagenet", images=images)
    stored = read_coop_pickle(images / "imagenet" / "preprocessed.pkl", "imagenet")
    for split in ("train", "test"):
        paths = [item.path for item in stored[split]]
        assert paths == sorted(paths) and len(paths) in (24, 12)


def test_flags_of_coops_parser_are_taken():
    args = parse_arguments(["--source-domains", "a", "b", "--head", "mlp", "OPTIM.LR", "1"])
    assert args.opts == ["OPTIM.LR", "1"]


def test_nothing_of_dassl_is_assigned():
    """No private attribute of Dassl's trainers, no function of another module."""
    folder = Path(ROOT / "trainers" / "hegraph" / "trainer")
    for file in folder.glob("*.py"):
        text = file.read_text()
        assert not re.findall(r"(?:self\._(?:models|optims|scheds|writer)\b|os\.listdir|__dict__\[\"setup_cfg)", text)
