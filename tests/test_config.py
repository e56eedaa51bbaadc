"""The configuration: Dassl's types, the order of layers, and mistakes that say how to mend them."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
from yacs.config import CfgNode

from trainers.hegraph.config import BY_SHOTS, CHOICES, FILLABLE, REMOVED, extend_cfg, get_cfg_default
from trainers.hegraph.config_files import from_dassl, load_cfg
from trainers.hegraph.utils.errors import UserError

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
    "RESUME": str,
    "INPUT.SIZE": tuple,
    "INPUT.INTERPOLATION": str,
    "INPUT.PIXEL_MEAN": list,
    "INPUT.PIXEL_STD": list,
    "INPUT.TRANSFORMS": tuple,
    "INPUT.RRCROP_SCALE": tuple,
    "DATASET.TARGET_DOMAINS": tuple,
    "DATASET.TARGET_DATASETS": tuple,
    "TEST.FINAL_MODEL": str,
    "TEST.SPLIT": str,
    "DATASET.ROOT": str,
    "DATASET.NAME": str,
    "DATASET.NUM_SHOTS": int,
    "DATASET.SUBSAMPLE_CLASSES": str,  # CoOp's, train.py at ff61507
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
    load_cfg()


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


def test_rows_fill_what_is_open_the_data_sets_before_those_of_all_before_those_by_shots(yaml):
    visual, steps = f"{OURS}.VISUAL_LR", f"{OURS}.MIN_STEPS"
    method = yaml(
        f"""
        OPTIM: {{LR: -1.0, MAX_EPOCH: -1}}
        TRAINER:
          HEGRAPHADAPTER:
            VISUAL_LR: -1.0
            MIN_STEPS: -1
            ALPHA_C: 8.0
            CLOSED_FORM: {{KAPPA: 4.0, OMEGA: 0.1}}
            BY_SHOTS: [[1, [OPTIM.LR, 0.1, OPTIM.MAX_EPOCH, 1, {visual}, 0.1, {steps}, 1]]]
            BY_DATASET:
              - ["*", [OPTIM.LR, 0.2, OPTIM.MAX_EPOCH, 2, {visual}, 0.2]]
              - ["Digits", [OPTIM.LR, 0.3, OPTIM.MAX_EPOCH, 3]]
              - ["EuroSAT", [OPTIM.LR, 0.4]]
        """
    )
    cfg = load_cfg("", method, {"DATASET.NAME": "Digits"}, ["OPTIM.MAX_EPOCH", "5"])
    node = cfg.TRAINER.HEGRAPHADAPTER
    assert (cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH, node.VISUAL_LR, node.MIN_STEPS) == (0.3, 5, 0.2, 1)


def test_what_a_file_sets_no_row_changes(yaml):
    method = yaml("OPTIM: {LR: 0.001, MAX_EPOCH: 7}")
    for shots, (_, pairs) in zip((1, 2, 4, 8, 16), BY_SHOTS):
        cfg = load_cfg("", method, {"DATASET.NUM_SHOTS": shots})
        assert (cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH) == (0.001, 7)
        assert cfg.TRAINER.HEGRAPHADAPTER.MIN_STEPS == pairs[pairs.index(f"{OURS}.MIN_STEPS") + 1]


@pytest.mark.parametrize("key", FILLABLE)
def test_a_key_that_stays_open_is_an_error_that_says_where_to_set_it(key):
    with pytest.raises(UserError, match=rf"{key} is -1, left to BY_DATASET and BY_SHOTS, and no row of them sets it"):
        load_cfg(opts=[f"{OURS}.BY_SHOTS", "[]", *(x for k in FILLABLE for x in (k, "-1" if k == key else "1"))])


def test_a_row_that_sets_another_key_is_an_error_that_lists_those_it_may_set():
    rows = "[['Digits', ['OPTIM.WEIGHT_DECAY', 0.1]]]"
    with pytest.raises(UserError, match=r"BY_DATASET fill OPTIM\.LR, .*, not OPTIM\.WEIGHT_DECAY; set that directly"):
        load_cfg(opts=[f"{OURS}.BY_DATASET", rows, "DATASET.NAME", "Digits"])


def test_all_images_take_the_row_of_most_shots():
    pairs = BY_SHOTS[-1][1]
    assert load_cfg(opts=["DATASET.NUM_SHOTS", "-1"]).OPTIM.LR == pairs[pairs.index("OPTIM.LR") + 1]


def test_flags_win_over_files_and_key_value_pairs_over_flags(yaml):
    file = yaml("SEED: 5\nDATASET: {NUM_SHOTS: 8}")
    cfg = load_cfg(file, "", {"SEED": 6, "DATASET.NUM_SHOTS": 4}, ["DATASET.NUM_SHOTS", "2"])
    assert (cfg.SEED, cfg.DATASET.NUM_SHOTS) == (6, 2)


def test_of_two_values_for_one_key_the_last_holds():
    assert load_cfg(opts=["SEED", "3", "SEED", "4"]).SEED == 4


@pytest.mark.parametrize(("shots", "steps"), [(1, 101), (2, 102), (3, 102), (4, 104), (15, 104), (16, 116), (99, 116)])
def test_the_last_row_not_above_the_runs_shots_holds(shots, steps):
    key = f"{OURS}.MIN_STEPS"  # rows out of order on purpose
    rows = f"[[4, ['{key}', 104]], [2, ['{key}', 102]], [16, ['{key}', 116]], [1, ['{key}', 101]]]"
    others = [entry for other in FILLABLE if other != key for entry in (other, "1")]
    cfg = load_cfg(opts=[f"{OURS}.BY_SHOTS", rows, *others, "DATASET.NUM_SHOTS", shots])
    assert cfg.TRAINER.HEGRAPHADAPTER.MIN_STEPS == steps


@pytest.mark.parametrize("shots", [row[0] for row in BY_SHOTS])
def test_the_shipped_rows_hold_at_their_shots(shots):
    pairs = dict(BY_SHOTS)[shots]
    flat = flatten(load_cfg(opts=["DATASET.NUM_SHOTS", shots]))
    assert all(flat[key] == value for key, value in zip(pairs[0::2], pairs[1::2]))


def test_a_row_of_another_data_set_does_not_hold():
    rows = "[['EuroSAT', ['OPTIM.LR', 0.25]]]"
    default = load_cfg().OPTIM.LR
    assert load_cfg(opts=[f"{OURS}.BY_DATASET", rows, "DATASET.NAME", "Digits"]).OPTIM.LR == default
    assert load_cfg(opts=[f"{OURS}.BY_DATASET", rows, "DATASET.NAME", "EuroSAT"]).OPTIM.LR == 0.25


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
    loaded = flatten(load_cfg(opts=[key, text]))[key]
    assert (type(loaded), loaded) == (type(value), value)


# --- mistakes


def test_an_unknown_key_is_an_error_that_names_the_nearest():
    with pytest.raises(UserError, match=r"unknown configuration key 'OPTIM\.LRR'; did you mean 'OPTIM\.LR'"):
        load_cfg(opts=["OPTIM.LRR", "1"])


def test_a_key_of_an_earlier_version_may_say_what_the_code_does_and_nothing_else():
    for key, value in REMOVED.items():
        assert load_cfg(opts=[key, value]) == load_cfg()
    with pytest.raises(UserError, match=r"ACTIVATION is tanh in this version and cannot be set, got 'relu'"):
        load_cfg(opts=[f"{OURS}.ACTIVATION", "relu"])


def test_an_unknown_key_in_a_file_names_the_file_too(yaml):
    with pytest.raises(UserError, match=r"config\.yaml: unknown .*'OPTIM\.LRR'; did you mean 'OPTIM\.LR'"):
        load_cfg(yaml("OPTIM: {LRR: 1.0}"))


def test_a_group_of_keys_without_its_colon_is_named_in_a_file(yaml):
    with pytest.raises(UserError, match=r"""config\.yaml: DATASET is a group of keys .*, got 'NAME "Digits"'"""):
        load_cfg(yaml('DATASET:\n  NAME "Digits"\n'))


@pytest.mark.parametrize("key", ["OPTIM", OURS])
def test_a_group_of_keys_is_no_key(key):
    with pytest.raises(
        UserError, match=f"{key} is a group of keys such as {key}.*, and takes no value itself, got '?1"
    ):
        load_cfg(opts=[key, "1"])


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("OPTIM.LR", "fast", "float such as -1.0, got 'fast'"),
        ("OPTIM.LR", "True", "float such as -1.0, got True"),
        ("OPTIM.MAX_EPOCH", "2.5", "int such as 15, got 2.5"),
        ("OPTIM.MAX_EPOCH", "True", "int such as 15, got True"),
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
        *(f"{OURS}.{name}" for name in ("LAMBDA", "BETA_C", "MIN_STEPS", "LR_WIDTH", "WEIGHT_LR_MULT", "VISUAL_LR")),
        f"{OURS}.LOSS_SCALE",
    ],
)
def test_rates_and_weights_are_not_negative(key):
    assert flatten(load_cfg(opts=[key, "0"]))[key] == 0
    with pytest.raises(UserError, match=f"{key} must not be negative, got -2"):
        load_cfg(opts=[key, "-2"])


@pytest.mark.parametrize("shots", ["0", "-2"])
def test_shots_are_at_least_one_or_all(shots):
    with pytest.raises(UserError, match=f"DATASET.NUM_SHOTS must be at least 1, or -1 for all images, got {shots}"):
        load_cfg(opts=["DATASET.NUM_SHOTS", shots])


def test_an_odd_number_of_options_is_an_error_that_shows_them():
    with pytest.raises(UserError, match=r"KEY VALUE pairs, but 'SEED 1 OPTIM\.LR' has no value at its end"):
        load_cfg(opts=["SEED", "1", "OPTIM.LR"])


def test_a_missing_file_names_the_nearest_of_its_folder():
    folder = ROOT / "configs" / "trainers" / "HeGraphAdapter"
    words = r"unknown configuration in .*HeGraphAdapter: 'vitb32.yaml'; did you mean 'vit_b32.yaml'"
    with pytest.raises(UserError, match=words):
        load_cfg("", str(folder / "vitb32.yaml"))


@pytest.mark.parametrize("name", ["x", "TipAdapter"])
def test_a_method_is_not_named_by_a_key(name):
    with pytest.raises(UserError, match=f"TRAINER.NAME is '{name}', but this is a run of HeGraphAdapter; leave"):
        load_cfg(opts=["TRAINER.NAME", name])
    with pytest.raises(UserError, match="TRAINER.NAME is 'HeGraphAdapter', but this is a run of ZeroShot"):
        load_cfg(method=("ZeroShot", {}))


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
        load_cfg(opts=[key, value])


# --- inside Dassl


def dassl_cfg() -> CfgNode:
    """Our keys with Dassl's own defaults where those differ, and one key of Dassl's that we lack."""
    cfg = get_cfg_default()
    del cfg["MODEL"], cfg["TRAINER"], cfg.DATASET["SUBSAMPLE_CLASSES"]
    cfg.MODEL = CfgNode({"BACKBONE": {"NAME": "", "PRETRAINED": True}})
    cfg.TRAINER = CfgNode({"NAME": ""})
    cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH, cfg.VERBOSE = 0.0003, 10, True
    cfg.INPUT.SIZE, cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD = (224, 224), [0.485] * 3, [0.229] * 3
    return cfg


def test_extending_dassls_configuration_leaves_what_its_own_trainers_read():
    cfg = dassl_cfg()
    before = flatten(cfg)
    extend_cfg(cfg)
    after = flatten(cfg)
    assert after["MODEL.BACKBONE.PRETRAINED"], "Dassl asks whether it is true"
    changed = {key for key in after if not key.startswith(OURS) and before.get(key) != after[key]}
    assert changed == {"MODEL.BACKBONE.PRETRAINED", "DATASET.SUBSAMPLE_CLASSES"}


def test_extending_keeps_the_classes_that_coop_subsamples():
    cfg = dassl_cfg()
    cfg.DATASET.SUBSAMPLE_CLASSES = "base"
    extend_cfg(cfg)
    assert cfg.DATASET.SUBSAMPLE_CLASSES == "base"


@pytest.mark.parametrize("file", METHOD_FILES, ids=lambda file: file.stem)
@pytest.mark.parametrize(("dataset", "shots"), [("EuroSAT", 1), ("OxfordPets", 16)])
def test_a_configuration_that_dassl_merged_and_froze_becomes_the_one_we_load(file, dataset, shots):
    cfg = dassl_cfg()
    extend_cfg(cfg)
    cfg.merge_from_file(str(file))
    opts = ["DATASET.NAME", dataset, "DATASET.NUM_SHOTS", shots, "TRAINER.NAME", "HeGraphAdapter"]
    cfg.merge_from_list(opts)
    cfg.freeze()
    assert flatten(from_dassl(cfg)) == flatten(load_cfg("", str(file), opts=opts))


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
    expected = flatten(load_cfg("", str(file)))
    assert {key for key, value in flatten(cfg).items() if value != expected[key]} <= set(FILLABLE)


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


@pytest.mark.parametrize(
    "grid",
    [
        [[f"{OURS}.VARIANT", ["full", "free"]], [f"{OURS}.FREE.RHO", [0.1, 0.3]]],  # the second counts for free alone
        [[f"{OURS}.ALPHA_C", [2.0, 2.0]]],  # equal values, of which the first is taken
        [["OPTIM.MAX_EPOCH", [5, 15]], [f"{OURS}.NOISE", [0.0, 1.0]]],
    ],
)
def test_a_key_may_be_selected_that_changes_some_candidate(grid):
    load_cfg(opts=[f"{OURS}.SELECT_ON", "val", f"{OURS}.SELECT", str(grid)])
