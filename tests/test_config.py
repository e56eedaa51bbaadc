"""The configuration: Dassl's types, the order of layers, and mistakes that say how to mend them."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
from yacs.config import CfgNode

from trainers.hegraph.config import BY_SHOTS, CHOICES, check_cfg, get_cfg_default, load_cfg
from trainers.hegraph.errors import UserError

ROOT = Path(__file__).parent.parent
METHOD_FILES = sorted((ROOT / "configs" / "trainers" / "HeGraphAdapter").glob("*.yaml"))
DATASET_FILES = sorted((ROOT / "configs" / "datasets").glob("*.yaml"))
OURS = "TRAINER.HEGRAPHADAPTER"

# From Dassl's dassl/config/defaults.py at c61a1b5
DASSL_TYPES = {
    "VERSION": int,
    "OUTPUT_DIR": str,
    "SEED": int,
    "USE_CUDA": bool,
    "INPUT.SIZE": tuple,
    "INPUT.INTERPOLATION": str,
    "INPUT.PIXEL_MEAN": list,
    "INPUT.PIXEL_STD": list,
    "INPUT.TRANSFORMS": tuple,
    "INPUT.RRCROP_SCALE": tuple,
    "DATASET.ROOT": str,
    "DATASET.NAME": str,
    "DATASET.NUM_SHOTS": int,
    "DATALOADER.NUM_WORKERS": int,
    "DATALOADER.TRAIN_X.BATCH_SIZE": int,
    "DATALOADER.TEST.BATCH_SIZE": int,
    "MODEL.BACKBONE.NAME": str,
    "OPTIM.NAME": str,
    "OPTIM.LR": float,
    "OPTIM.WEIGHT_DECAY": float,
    "OPTIM.LR_SCHEDULER": str,
    "OPTIM.MAX_EPOCH": int,
    "OPTIM.WARMUP_EPOCH": int,
    "OPTIM.WARMUP_TYPE": str,
    "OPTIM.WARMUP_CONS_LR": float,
    "TRAIN.CHECKPOINT_FREQ": int,
    "TRAIN.PRINT_FREQ": int,
    "TRAINER.NAME": str,
}
# A bool in Dassl, which says whether to download; extend_cfg puts a name or a path in its place
REPLACED = {"MODEL.BACKBONE.PRETRAINED": str}


def flatten(node: CfgNode, prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in node.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else {f"{prefix}{key}": value}
    return flat


@pytest.fixture
def yaml(tmp_path):
    """Writes a YAML file and returns its path."""

    def write(text: str, name: str = "config.yaml") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


def test_every_default_passes_the_check():
    check_cfg(get_cfg_default())


def test_the_keys_outside_our_node_are_dassls_with_dassls_types():
    types = {key: type(value) for key, value in flatten(get_cfg_default()).items() if not key.startswith(OURS)}
    assert types == DASSL_TYPES | REPLACED


def test_defaults_can_be_changed_without_changing_the_module():
    rows = get_cfg_default().TRAINER.HEGRAPHADAPTER.BY_SHOTS
    assert rows is not get_cfg_default().TRAINER.HEGRAPHADAPTER.BY_SHOTS
    for row, (_, shipped) in zip(rows, BY_SHOTS):
        assert row[1] is not shipped


def test_a_loaded_configuration_is_frozen():
    with pytest.raises(AttributeError):
        load_cfg().OPTIM.LR = 1.0


# --- the order of layers


def test_the_method_file_wins_over_the_data_set_file_and_both_over_the_defaults(yaml):
    dataset = yaml("DATASET: {NAME: Digits}\nOPTIM: {MAX_EPOCH: 7, WEIGHT_DECAY: 0.5}", "dataset.yaml")
    method = yaml("OPTIM: {MAX_EPOCH: 8}", "method.yaml")
    cfg = load_cfg(dataset, method)
    assert (cfg.DATASET.NAME, cfg.OPTIM.WEIGHT_DECAY, cfg.OPTIM.MAX_EPOCH) == ("Digits", 0.5, 8)
    assert cfg.OPTIM.WARMUP_EPOCH == get_cfg_default().OPTIM.WARMUP_EPOCH


def test_rows_by_shots_win_over_files_rows_by_data_set_over_them_and_the_command_line_over_all(yaml):
    method = yaml(
        f"""
        OPTIM: {{LR: 0.1, MAX_EPOCH: 1, WEIGHT_DECAY: 0.1, WARMUP_EPOCH: 1}}
        TRAINER:
          HEGRAPHADAPTER:
            BY_SHOTS: [[1, [{OURS}.GAMMA, 2.0, OPTIM.MAX_EPOCH, 2, OPTIM.WEIGHT_DECAY, 0.2, OPTIM.WARMUP_EPOCH, 2]]]
            BY_DATASET: [["Digits", [OPTIM.WEIGHT_DECAY, 0.3, OPTIM.WARMUP_EPOCH, 3]]]
        """
    )
    cfg = load_cfg("", method, {"DATASET.NAME": "Digits"}, ["OPTIM.WARMUP_EPOCH", "4"])
    assert (cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH, cfg.OPTIM.WEIGHT_DECAY, cfg.OPTIM.WARMUP_EPOCH) == (0.1, 2, 0.3, 4)
    assert cfg.TRAINER.HEGRAPHADAPTER.GAMMA == 2.0


def test_flags_win_over_files_and_key_value_pairs_over_flags(yaml):
    file = yaml("SEED: 5\nDATASET: {NUM_SHOTS: 8}")
    cfg = load_cfg(file, "", {"SEED": 6, "DATASET.NUM_SHOTS": 4}, ["DATASET.NUM_SHOTS", "2"])
    assert (cfg.SEED, cfg.DATASET.NUM_SHOTS) == (6, 2)


def test_of_two_values_for_one_key_the_last_holds():
    assert load_cfg(opts=["SEED", "3", "SEED", "4"]).SEED == 4


@pytest.mark.parametrize(("shots", "epochs"), [(1, 30), (2, 102), (3, 102), (4, 104), (15, 104), (16, 116), (99, 116)])
def test_the_last_row_not_above_the_runs_shots_holds(shots, epochs):
    # Out of order on purpose; no row holds for one shot, so it keeps the default
    rows = "[[4, ['OPTIM.MAX_EPOCH', 104]], [2, ['OPTIM.MAX_EPOCH', 102]], [16, ['OPTIM.MAX_EPOCH', 116]]]"
    cfg = load_cfg(opts=[f"{OURS}.BY_SHOTS", rows, "DATASET.NUM_SHOTS", shots])
    held = cfg.OPTIM.MAX_EPOCH
    assert held == epochs


@pytest.mark.parametrize("shots", [row[0] for row in BY_SHOTS])
def test_the_shipped_rows_hold_at_their_shots(shots):
    pairs = dict(BY_SHOTS)[shots]
    flat = flatten(load_cfg(opts=["DATASET.NUM_SHOTS", shots]))
    assert all(flat[key] == value for key, value in zip(pairs[0::2], pairs[1::2]))


def test_a_row_of_another_data_set_does_not_hold():
    rows = "[['EuroSAT', ['OPTIM.MAX_EPOCH', 100]]]"
    assert load_cfg(opts=[f"{OURS}.BY_DATASET", rows, "DATASET.NAME", "Digits"]).OPTIM.MAX_EPOCH == 30
    assert load_cfg(opts=[f"{OURS}.BY_DATASET", rows, "DATASET.NAME", "EuroSAT"]).OPTIM.MAX_EPOCH == 100


# --- values


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("OPTIM.LR", "1e-3", 0.001),
        ("OPTIM.LR", "1", 1.0),
        ("INPUT.SIZE", "[32, 32]", (32, 32)),
        ("INPUT.PIXEL_MEAN", "(0.5, 0.5, 0.5)", [0.5, 0.5, 0.5]),
        ("USE_CUDA", "False", False),
        ("OUTPUT_DIR", "2024", "2024"),
        (f"{OURS}.PROMPTS.TEMPLATES", "['a {}.']", ["a {}."]),
    ],
)
def test_text_from_the_command_line_becomes_a_value_of_the_keys_type(key, text, value):
    loaded = flatten(load_cfg(opts=[f"{OURS}.BY_SHOTS", "[]", key, text]))[key]
    assert (type(loaded), loaded) == (type(value), value)


# --- mistakes


def test_an_unknown_key_is_an_error_that_names_the_nearest():
    with pytest.raises(UserError, match=r"unknown configuration key 'OPTIM\.LRR'; did you mean 'OPTIM\.LR'"):
        load_cfg(opts=["OPTIM.LRR", "1"])


def test_an_unknown_key_in_a_file_names_the_file_too(yaml):
    with pytest.raises(UserError, match=r"config\.yaml: unknown .*'OPTIM\.LRR'; did you mean 'OPTIM\.LR'"):
        load_cfg(yaml("OPTIM: {LRR: 1.0}"))


@pytest.mark.parametrize("key", ["OPTIM", OURS])
def test_a_group_of_keys_is_no_key(key):
    with pytest.raises(UserError, match=f"unknown configuration key '{key}'"):
        load_cfg(opts=[key, "1"])


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("OPTIM.LR", "fast", "float such as 0.001, got 'fast'"),
        ("OPTIM.LR", "True", "float such as 0.001, got True"),
        ("OPTIM.MAX_EPOCH", "2.5", "int such as 30, got 2.5"),
        ("OPTIM.MAX_EPOCH", "True", "int such as 30, got True"),
        ("USE_CUDA", "1", "bool such as True, got 1"),
        (f"{OURS}.PROMPTS.TEMPLATES", "a {}.", "list such as [], got 'a {}.'"),
    ],
)
def test_a_value_of_the_wrong_type_is_an_error_with_key_type_and_value(key, value, words):
    with pytest.raises(UserError, match=rf"^{key} must be of type {re.escape(words)}$"):
        load_cfg(opts=[key, value])


def test_a_value_of_the_wrong_type_in_a_file_names_the_file_too(yaml):
    with pytest.raises(UserError, match=r"config\.yaml: OPTIM\.LR must be of type float"):
        load_cfg(yaml("OPTIM: {LR: fast}"))


@pytest.mark.parametrize("key", CHOICES)
def test_a_value_that_is_no_choice_is_an_error_with_key_value_and_nearest(key):
    allowed = CHOICES[key][-1]
    with pytest.raises(UserError) as caught:
        load_cfg(opts=[key, allowed + "x"])
    assert f"unknown value of {key} '{allowed}x'; did you mean '{allowed}'" in str(caught.value)


@pytest.mark.parametrize("key", CHOICES)
def test_every_choice_is_accepted(key):
    for value in CHOICES[key]:
        assert flatten(load_cfg(opts=[key, value]))[key] == value


def test_an_unknown_image_transform_is_an_error_that_names_the_nearest():
    with pytest.raises(UserError, match=r"unknown INPUT\.TRANSFORMS 'random_flipp'; did you mean 'random_flip'"):
        load_cfg(opts=["INPUT.TRANSFORMS", "['normalize', 'random_flipp']"])


@pytest.mark.parametrize(
    "key",
    [
        "TRAIN.PRINT_FREQ",
        "DATASET.NUM_SHOTS",
        "DATALOADER.TRAIN_X.BATCH_SIZE",
        "DATALOADER.TEST.BATCH_SIZE",
        "OPTIM.MAX_EPOCH",
        f"{OURS}.FEATURES.VIEWS",
    ],
)
def test_counts_start_at_one(key):
    assert flatten(load_cfg(opts=[key, "1"]))[key] == 1
    with pytest.raises(UserError, match=f"{key} must be at least 1, got 0"):
        load_cfg(opts=[key, "0"])


@pytest.mark.parametrize(
    "key",
    [
        "OPTIM.LR",
        "OPTIM.WEIGHT_DECAY",
        "OPTIM.WARMUP_CONS_LR",
        "TRAIN.CHECKPOINT_FREQ",
        *(f"{OURS}.{name}" for name in ("LAMBDA", "BETA_C", "MIN_STEPS", "WEIGHT_LR_MULT", "VISUAL_LR", "LOSS_SCALE")),
    ],
)
def test_rates_and_weights_are_not_negative(key):
    assert flatten(load_cfg(opts=[key, "0"]))[key] == 0
    with pytest.raises(UserError, match=f"{key} must not be negative, got -1"):
        load_cfg(opts=[key, "-1"])


def test_an_odd_number_of_options_is_an_error_that_shows_them():
    with pytest.raises(UserError, match=r"KEY VALUE pairs, but 'SEED 1 OPTIM\.LR' has no value at its end"):
        load_cfg(opts=["SEED", "1", "OPTIM.LR"])


def test_a_missing_file_names_the_nearest_of_its_folder():
    folder = ROOT / "configs" / "trainers" / "HeGraphAdapter"
    words = r"unknown configuration in .*HeGraphAdapter: 'vitb32.yaml'; did you mean 'vit_b32.yaml'"
    with pytest.raises(UserError, match=words):
        load_cfg("", str(folder / "vitb32.yaml"))


def test_a_missing_file_in_a_folder_without_others_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the configuration .*absent\.yaml: No such file"):
        load_cfg(str(tmp_path / "absent.yaml"))


@pytest.mark.parametrize("text", ["OPTIM: [1, 2", "a: b: c", "\ttab: 1"])
def test_a_file_that_is_not_yaml_is_named_in_one_line(yaml, text):
    with pytest.raises(UserError, match=r"config\.yaml is not YAML: ") as caught:
        load_cfg(yaml(text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["just words", "- a\n- list", "3"])
def test_a_file_without_keys_is_named(yaml, text):
    with pytest.raises(UserError, match=r"config\.yaml must hold KEY: VALUE lines"):
        load_cfg(yaml(text))


def test_an_empty_file_changes_nothing(yaml):
    assert load_cfg(yaml("")) == load_cfg()


def test_a_binary_file_is_named(tmp_path):
    (tmp_path / "bank.safetensors").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"bank\.safetensors.* not (YAML|text)"):
        load_cfg(str(tmp_path / "bank.safetensors"))


@pytest.mark.parametrize(("key", "first"), [("BY_SHOTS", "1"), ("BY_DATASET", "'Digits'")])
@pytest.mark.parametrize("row", ["{}", "[{}]", "[{}, ['OPTIM.LR']]", "[{}, 'OPTIM.LR']"])
def test_a_row_of_another_structure_is_an_error_that_names_its_key(key, first, row):
    with pytest.raises(UserError, match=f"^(a row of )?({OURS}.)?{key} "):
        load_cfg(opts=[f"{OURS}.{key}", f"[{row.format(first)}]", "DATASET.NAME", "Digits"])


# --- mistakes that still end in a traceback, or in silence


def test_a_file_that_differs_in_its_suffix_alone_is_not_suggested_by_the_name_that_came():
    with pytest.raises(UserError, match=r"rn50\.yml.*did you mean 'rn50\.yaml'"):
        load_cfg("", str(ROOT / "configs" / "trainers" / "HeGraphAdapter" / "rn50.yml"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SEED", str(2**32)),  # numpy takes none above 2**32 - 1
        ("OPTIM.WARMUP_CONS_LR", "-1.0"),  # climbs the loss for an epoch
        ("OPTIM.LR", "1e999"),  # infinite
        ("INPUT.TRANSFORMS", "(1,)"),
        ("INPUT.RRCROP_SCALE", "(2,)"),
        (f"{OURS}.PROMPTS.TEMPLATES", "[1]"),
        (f"{OURS}.PROMPTS.NEGATIVE_TEMPLATES", "[1]"),
    ],
)
def test_values_out_of_range_are_errors_with_their_key(key, value):
    with pytest.raises(UserError, match=f"^(unknown )?{key} "):
        load_cfg(opts=[f"{OURS}.BY_SHOTS", "[]", key, value])


def test_a_key_that_does_nothing_is_refused():
    with pytest.raises(UserError, match="^(unknown configuration key ')?RESUME"):
        load_cfg(opts=["RESUME", "output/run1"])


# --- the shipped files


@pytest.mark.parametrize("file", METHOD_FILES, ids=lambda file: file.stem)
def test_every_method_file_loads(file):
    cfg = load_cfg("", str(file))
    assert cfg.MODEL.BACKBONE.NAME
    assert (cfg.OPTIM.WARMUP_EPOCH, cfg.OPTIM.WARMUP_CONS_LR) == (1, 1e-5)


@pytest.mark.parametrize("file", [*METHOD_FILES, *DATASET_FILES], ids=lambda file: file.stem)
def test_every_file_loads_as_dassl_loads_it(file):
    cfg = get_cfg_default()  # Dassl's keys with Dassl's types, as tested above
    logging.disable(logging.CRITICAL)
    try:
        cfg.merge_from_file(str(file))
    finally:
        logging.disable(logging.NOTSET)
    expected = load_cfg("", str(file), opts=[f"{OURS}.BY_SHOTS", "[]", f"{OURS}.BY_DATASET", "[]"])
    kept = {key: value for key, value in flatten(cfg).items() if ".BY_" not in key}
    assert kept == {key: value for key, value in flatten(expected).items() if ".BY_" not in key}


@pytest.mark.parametrize("file", DATASET_FILES, ids=lambda file: file.stem)
def test_a_data_set_file_holds_its_name_only(file):
    default, loaded = flatten(load_cfg()), flatten(load_cfg(str(file)))
    changed = {key for key in default if default[key] != loaded[key]}
    assert changed == {"DATASET.NAME"}


@pytest.mark.parametrize("file", [f for f in METHOD_FILES if f.stem.endswith("_paper")], ids=lambda file: file.stem)
@pytest.mark.parametrize(
    ("dataset", "epochs", "rate"),
    [
        ("ImageNet", 30, 0.001),
        ("EuroSAT", 100, 0.001),
        ("DescribableTextures", 100, 0.001),
        ("FGVCAircraft", 100, 0.01),
    ],
)
def test_the_paper_files_have_the_papers_epochs_and_rates_at_any_shots(file, dataset, epochs, rate):
    # Section 4.1: 30 epochs, 100 on EuroSAT, DTD and FGVCAircraft; rate 0.001, 0.01 on FGVCAircraft
    for shots in (1, 16):
        cfg = load_cfg("", str(file), {"DATASET.NAME": dataset, "DATASET.NUM_SHOTS": shots})
        loaded = (cfg.OPTIM.MAX_EPOCH, cfg.OPTIM.LR)
        assert loaded == (epochs, rate)
        assert cfg.TRAINER.HEGRAPHADAPTER.LAMBDA == 0.1


@pytest.mark.parametrize("file", [f for f in METHOD_FILES if f.stem.endswith("_paper")], ids=lambda file: file.stem)
def test_a_paper_file_differs_from_ours_in_the_recipe_not_in_backbone_or_input(file):
    ours = load_cfg("", str(file.with_stem(file.stem.removesuffix("_paper"))))
    paper = load_cfg("", str(file))
    assert (ours.MODEL, ours.INPUT, ours.DATALOADER) == (paper.MODEL, paper.INPUT, paper.DATALOADER)
