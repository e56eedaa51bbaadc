"""Configuration: declared options, order of layers, types and ranges of values, files, and Dassl."""

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, dataclass, fields, is_dataclass
from pathlib import Path

import pytest
from yacs.config import CfgNode

from trainers.hegraph import UserError, config, load_cfg
from trainers.hegraph.commands.label import parse_arguments as parse_labels
from trainers.hegraph.commands.teach import find_encoder, read_encoder
from trainers.hegraph.config import BY_SHOTS, FILLABLE, OPTIONS, default_values, extend_cfg, is_filled
from trainers.hegraph.config_files import DATA_SET, METHOD, find_config_file, flatten, from_dassl, with_values
from trainers.hegraph.features.backbones.identity import DEFAULT_BACKBONE
from trainers.hegraph.utils.option import NODE, OPEN, OptionGroup, option

CONFIGS = Path(__file__).parent.parent / "configs"
METHOD_FILES = sorted((CONFIGS / "trainers" / "HeGraphAdapter").glob("*.yaml"))


@pytest.fixture
def yaml(tmp_path):
    """Writes a YAML file and returns its path."""

    def write(text: str, name: str = "config.yaml") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


# Options


def test_every_key_sets_one_option():
    others = {
        "INPUT.RRCROP_SCALE": (0.5, 0.75), "INPUT.TRANSFORMS": ("normalize",),
        f"{NODE}.SELECT": [["OPTIM.LR", [1.0]]], f"{NODE}.BY_SHOTS": [[2, ["OPTIM.LR", 1.0]]],
        f"{NODE}.BY_DATASET": [["Digits", ["OPTIM.LR", 1.0]]], "DATASET.SHOTS_PER_CLASS": "16,16",
        "DATASET.GROUP_PATTERN": "_(g[0-9])_",
    }  # fmt: skip
    by_type = {bool: False, str: "other", tuple: ("a",), list: ["a"]}
    usual = load_cfg()
    apart = {o.key for holder in (config.DasslOptions, config.TrainingFreeOptions) for o in config.options_of(holder)}
    for key, declared in OPTIONS.items():
        if key in apart or key == "TRAINER.NAME":
            continue
        before = usual.values[key]
        value = others.get(key, [[1, 7.5]] if declared.by_task else by_type.get(type(before)))
        if declared.choices and key not in others:
            value = next(choice for choice in declared.choices if choice != before)
        elif isinstance(before, bool):
            value = not before
        elif value is None:
            value = before + 1
        expected = value[0][1] if declared.by_task else value
        assert changed_fields(usual, with_values(usual, {key: value})) == [expected], key


def changed_fields(usual, cfg) -> list:
    found = []
    for field in fields(usual):
        before, after = getattr(usual, field.name), getattr(cfg, field.name)
        if is_dataclass(before):
            found += changed_fields(before, after)
        elif field.name == "metapath":
            found += [value for key, value in after.items() if value != before[key]]
        elif field.name != "values" and before != after:
            found.append(after)
    return found


def test_training_free_constants_depend_on_shots():
    rows = [
        f"{NODE}.TRAINING_FREE.KAPPA", [[1, 5.0], [4, 6.0]], f"{NODE}.TRAINING_FREE.OMEGA", [[1, 0.5]],
        f"{NODE}.TRAINING_FREE.RHO", 0.7,
    ]  # fmt: skip
    for shots, kappa in ((1, 5.0), (3, 5.0), (4, 6.0), (-1, 6.0)):
        given = [*rows, "DATASET.NUM_SHOTS", shots]
        free = load_cfg(opts=[*given, f"{NODE}.VARIANT", "training_free"]).model.closed_form
        assert (free.kappa, free.omega, free.rho) == (kappa, 0.5, 0.7)
        assert load_cfg(opts=given).model.closed_form.rho == 0.3


@dataclass(frozen=True)
class NearestMeanOptions:
    alpha: float = option(0.5, "ALPHA", "weight")
    steps: Sequence[int] = option([1], "STEPS", "steps", numbers=0)
    scale: float = option(2.0, "SCALE", "scale", configured=[[1, 2.0], [4, 8.0]], by_task=True)


def test_options_of_a_baseline_are_frozen_copies():
    method = OptionGroup("NearestMean", NearestMeanOptions)
    opts = ["TRAINER.NEARESTMEAN.ALPHA", "1", "TRAINER.NAME", "NearestMean"]
    cfg = load_cfg(opts=opts, method=method)
    assert (cfg.method.alpha, cfg.method.steps) == (1.0, [1])
    with pytest.raises(FrozenInstanceError):
        cfg.method.alpha = 2.0
    cfg.method.steps.append(2)
    assert cfg.values["TRAINER.NEARESTMEAN.STEPS"] == method.default_values()["TRAINER.NEARESTMEAN.STEPS"] == [1]


def test_options_of_a_baseline_follow_the_images():
    cfg = load_cfg(
        opts=["TRAINER.NAME", "NearestMean", "DATASET.NUM_SHOTS", 16],
        method=OptionGroup("NearestMean", NearestMeanOptions),
    )
    assert [cfg.method.scale, cfg.method_for("", 3).scale, cfg.method_for("", 4).scale] == [8.0, 2.0, 8.0]


def test_configurations_and_defaults_are_immutable():
    for part in (load_cfg(), *(vars(load_cfg()).values())):
        if is_dataclass(part):
            with pytest.raises(FrozenInstanceError):
                setattr(part, fields(part)[0].name, 1.0)
    default_values()[f"{NODE}.BY_SHOTS"].clear()
    assert default_values()[f"{NODE}.BY_SHOTS"] == BY_SHOTS


# The order of layers


def test_later_layers_win(yaml):
    dataset = yaml("DATASET: {NAME: Digits}\nOPTIM: {MAX_EPOCH: 7, WEIGHT_DECAY: 0.5}\nSEED: 5", "dataset.yaml")
    method = yaml("OPTIM: {MAX_EPOCH: 8}\nDATASET: {NUM_SHOTS: 8}", "method.yaml")
    pairs = ["DATASET.NUM_SHOTS", "3", "DATASET.NUM_SHOTS", 2]
    cfg = load_cfg(dataset, method, {"SEED": 6, "DATASET.NUM_SHOTS": 4}, pairs)
    assert (cfg.data.name, cfg.training.weight_decay, cfg.training.epochs) == ("Digits", 0.5, 8)
    assert (cfg.run.seed, cfg.data.shots, cfg.training.warmup_epochs, load_cfg(yaml(""))) == (6, 2, 1, load_cfg())


def test_priority_of_rows_for_open_keys(yaml):
    visual, steps = f"{NODE}.VISUAL_LR", f"{NODE}.MIN_STEPS"
    method = yaml(
        f"""
        OPTIM: {{LR: -1.0, MAX_EPOCH: -1}}
        TRAINER:
          HEGRAPHADAPTER:
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
    found = cfg.training.learning_rate, cfg.training.epochs, cfg.training.visual_lr, cfg.training.min_steps
    assert found == (0.3, 5, 0.2, 1)
    assert [is_filled(cfg, key) for key in ("OPTIM.LR", "OPTIM.MAX_EPOCH", f"{NODE}.ALPHA_C")] == [True, False, False]


def test_row_for_the_number_of_shots():
    key = f"{NODE}.MIN_STEPS"  # rows out of order on purpose
    rows = [[shots, [key, 100 + shots]] for shots in (4, 2, 16, 1)]
    others = [entry for other in FILLABLE if other != key for entry in (other, "1")]
    for shots, steps in ((1, 101), (3, 102), (4, 104), (15, 104), (99, 116), (-1, 116)):
        cfg = load_cfg(opts=[f"{NODE}.BY_SHOTS", str(rows), *others, "DATASET.NUM_SHOTS", shots])
        assert cfg.training.min_steps == steps


def test_shipped_rows_fill_open_keys():
    for shots, pairs in BY_SHOTS:
        cfg = load_cfg(opts=["DATASET.NUM_SHOTS", shots])
        assert all(cfg.values[key] == value for key, value in zip(pairs[0::2], pairs[1::2]))
        assert load_cfg(opts=["DATASET.NUM_SHOTS", shots, "OPTIM.LR", 0.75]).training.learning_rate == 0.75


@pytest.mark.parametrize("key", FILLABLE)
def test_open_keys_without_a_row_are_refused(key, refused):
    others = [entry for other in FILLABLE for entry in (other, OPEN if other == key else 1)]
    with refused("config.open", f"{key} is -1"):
        load_cfg(opts=[f"{NODE}.BY_SHOTS", "[]", *others])


@pytest.mark.parametrize("key", FILLABLE)
def test_open_is_no_value_of_a_filled_key(key, refused):
    assert OPTIONS[key].least == 0 or OPTIONS[key].least == 1 or OPTIONS[key].above == 0
    with refused("option", key.rpartition(".")[2]):
        with_values(load_cfg(), {key: OPEN})


def test_open_is_no_candidate_of_a_selection(refused):
    with refused("option", "ALPHA_C must be at least 0, got -1.0"):
        load_cfg(opts=[f"{NODE}.SELECT_ON", "val", f"{NODE}.SELECT", [[f"{NODE}.ALPHA_C", [-1.0, 2.0]]]])


# Values


def test_values_take_the_type_of_their_key():
    for key, given, value in (
        ("OPTIM.LR", "1e-3", 0.001), ("OPTIM.LR", "1", 1.0), ("INPUT.SIZE", "[32, 32]", (32, 32)),
        ("INPUT.PIXEL_MEAN", "(0.5, 0.5, 0.5)", [0.5, 0.5, 0.5]), ("OUTPUT_DIR", "2024", "2024"),
        ("OUTPUT_DIR", 2024, "2024"), ("OUTPUT_DIR", 0.5, "0.5"), ("OPTIM.LR", 1, 1.0),
        ("SEED", str(2**32 - 1), 2**32 - 1), (f"{NODE}.PROMPTS.TEMPLATES", "['a {}.']", ["a {}."]),
    ):  # fmt: skip
        loaded = load_cfg(opts=[key, given]).values[key]
        assert (type(loaded), loaded) == (type(value), value)


@pytest.mark.parametrize(("key", "value", "code"), [
    ("OPTIM.LR", "True", "config.type"), ("OPTIM.MAX_EPOCH", "2.5", "config.type"), ("USE_CUDA", "1", "config.type"),
    ("SEED", str(2**32), "option"), ("SEED", str(-(2**31) - 1), "option"),
    ("INPUT.SIZE", "{[1], [2]}", "config.type"), ("INPUT.PIXEL_MEAN", "[1e999]", "config.plain"),
    ("INPUT.TRANSFORMS", "(1,)", "unknown"), ("INPUT.RRCROP_SCALE", "(0.5, 0.25)", "option"),
    ("OUTPUT_DIR", "a\0b", "config.plain"), ("OUTPUT_DIR", "a\udcff", "config.plain"),
    (f"{NODE}.PROMPTS.TEMPLATES", "[1]", "option"),
    (f"{NODE}.CLOSED_FORM.KAPPA", "0", "option"), (f"{NODE}.TRAINING_FREE.KAPPA", "[[2, 1.0]]", "option"),
    (f"{NODE}.TRAINING_FREE.OMEGA", "[[1, 0.0]]", "option"),
    (f"{NODE}.BY_DATASET", "[[1, ['OPTIM.LR', 1]]]", "option"),
    (f"{NODE}.BY_DATASET", "[['*', ['OPTIM.WEIGHT_DECAY', 0.1]]]", "config.filled"),
    ("TRAINER.NAME", "TipAdapter", "config.method"),
])  # fmt: skip
def test_invalid_values_are_refused(key, value, code, refused):
    with refused(code, key.rpartition(".")[2]):
        load_cfg(opts=[key, value])


@pytest.mark.parametrize(("key", "value", "code", "words"), [
    ("OPTIM.LR", "fast", "config.type", "OPTIM.LR: expected type float, such as -1.0, got 'fast'"),
    ("OPTIM.LR", "-2", "option", "OPTIM.LR must be at least 0, got -2.0"),
    ("OPTIM.LR", "1" * 400, "option", "a finite number of 32 bits"),
    (f"{NODE}.SELECT", "[['OPTIM.LR', []]]", "option", "must have rows [KEY, [VALUE, ...]], got"),
    (f"{NODE}.VARIANT", "fulll", "unknown", "did you mean 'full'"),
    ("OPTIM.LRR", "1", "unknown", "did you mean 'OPTIM.LR'"),
])  # fmt: skip
def test_messages_name_the_expected_value(key, value, code, words, refused):
    with refused(code, words):
        load_cfg(opts=[key, value])


def test_bounds_and_choices_are_allowed(refused):
    for key, declared in OPTIONS.items():
        if declared.least is not None:
            kind = type(declared.default)
            assert load_cfg(opts=[key, kind(declared.least)]).values[key] == declared.least
            with refused("option", key):
                load_cfg(opts=[key, math.nextafter(declared.least, -9) if kind is float else kind(declared.least) - 3])
        for choice in declared.choices if isinstance(declared.default, str) else ():
            load_cfg(opts=[key, choice])


def test_a_key_without_a_value_is_refused():
    with pytest.raises(UserError, match=r"got 'SEED 1 OPTIM\.LR': the last key has no value"):
        load_cfg(opts=["SEED", "1", "OPTIM.LR"])


@pytest.mark.parametrize(("opts", "variant"), [
    (["TEXT_W", False, f"{NODE}.BIAS", False], "T"), (["ALPHA_NP", 0], "T-N"),
    (["ALPHA_PP", 0, f"{NODE}.ALPHA_VP", 0], "T-P"),
])  # fmt: skip
def test_variants_without_parameters_are_refused(opts, variant, refused):
    given = [f"{NODE}.{opts[0]}", *opts[1:], f"{NODE}.VARIANT"]
    with refused("config.untrainable", f"VARIANT {variant}"):
        load_cfg(opts=[*given, variant])
    for other in ("base", "training_free"):  # they train nothing anyway
        load_cfg(opts=[*given, other])


@pytest.mark.parametrize(("key", "values"), [("OUTPUT_DIR", ["a", "b"]), ("DATALOADER.TRAIN_X.BATCH_SIZE", [8, 16])])
def test_select_refuses_options_of_other_parts(key, values, refused):
    with refused("config.select", key):
        load_cfg(opts=[f"{NODE}.SELECT_ON", "val", f"{NODE}.SELECT", str([["OPTIM.LR", [1.0]], [key, values]])])


def test_select_accepts_options_of_the_adapter():
    val = [f"{NODE}.SELECT_ON", "val", f"{NODE}.SELECT"]
    load_cfg(
        opts=[*val, str([[f"{NODE}.VARIANT", ["full", "training_free"]], [f"{NODE}.TRAINING_FREE.RHO", [0.1, 0.3]]])]
    )
    load_cfg(opts=[*val, str([["OPTIM.MAX_EPOCH", [5, 15]], [f"{NODE}.NOISE", [0.0, 1.0]]])])


# Files


@pytest.mark.parametrize(("text", "words"), [
    ("OPTIM: {LRR: 1.0}", "'OPTIM.LRR'"), ('DATASET:\n  NAME "Digits"\n', "'DATASET'"), ("OPTIM: [1, 2", "damaged"),
    ("- a\n- list", "KEY: VALUE"), ("OUTPUT_DIR: 2024-01-01", "str"),
    (f"OUTPUT_DIR: 0x{'f' * 4500}", "OUTPUT_DIR: expected type str, such as './output', got a int"), ("\0", ""),
])  # fmt: skip
def test_invalid_files_are_named(yaml, text, words):
    with pytest.raises(UserError, match=rf"config\.yaml.*{re.escape(words)}"):
        load_cfg(yaml(text))


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match=r"absent\.yaml: No such file"):
        load_cfg("absent.yaml")


def test_shipped_configurations_are_found_by_name():
    for kind, folder in ((DATA_SET, "datasets"), (METHOD, "trainers/HeGraphAdapter")):
        files = sorted((CONFIGS / folder).glob("*.yaml"))
        assert files and [find_config_file(kind, file.stem) for file in files] == files


@pytest.mark.parametrize(("kind", "message"), [
    (DATA_SET, "configuration 'digit'; did you mean 'digits'"),
    (METHOD, "configuration 'vit_b61'; did you mean 'vit_b16'"),
    (METHOD, "configuration 'digits'"),  # it is one of a data set
])  # fmt: skip
def test_unknown_configurations_are_refused(kind, message):
    with pytest.raises(UserError, match=f"unknown {kind} {message}"):
        find_config_file(kind, message.split("'")[1])


def test_paths_take_precedence_over_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    (tmp_path / "mini").write_text("SEED: 5\n")
    assert find_config_file(DATA_SET, "digits") == CONFIGS / "datasets" / "digits.yaml"
    assert find_config_file(METHOD, "mini") == Path("mini")
    for path in ("nowhere.yaml", "nowhere/mini"):
        assert find_config_file(METHOD, path) == Path(path)


# With Dassl


def dassl_cfg() -> CfgNode:
    """Configuration of Dassl: its own defaults, and a key that this package does not have."""
    cfg = CfgNode()
    for key, value in default_values().items():
        config.set_key(cfg, key, value)
    del cfg["MODEL"], cfg["TRAINER"], cfg.DATASET["SUBSAMPLE_CLASSES"]
    cfg.MODEL = CfgNode({"BACKBONE": {"NAME": "", "PRETRAINED": True}})
    cfg.TRAINER = CfgNode({"NAME": ""})
    cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH, cfg.VERBOSE = 0.0003, 10, True
    cfg.INPUT.SIZE, cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD = (224, 224), [0.485] * 3, [0.229] * 3
    return cfg


def test_extend_cfg_keeps_dassls_keys():
    cfg = dassl_cfg()
    before = flatten(cfg)
    extend_cfg(cfg)
    after = flatten(cfg)
    changed = {key for key in after if not key.startswith(NODE) and before.get(key) != after[key]}
    assert changed == {"DATASET.SUBSAMPLE_CLASSES"}
    cfg.DATASET.SUBSAMPLE_CLASSES = "base"
    extend_cfg(cfg)
    assert cfg.DATASET.SUBSAMPLE_CLASSES == "base"


def test_dassls_boolean_of_pretrained_stays_settable():
    cfg = dassl_cfg()
    extend_cfg(cfg)
    cfg.merge_from_list(["MODEL.BACKBONE.PRETRAINED", False, f"{NODE}.PRETRAINED", "laion2b_s34b_b79k"])
    assert cfg.MODEL.BACKBONE.PRETRAINED is False
    cfg.merge_from_file(str(CONFIGS / "trainers" / "HeGraphAdapter" / "rn50.yaml"))
    assert from_dassl(cfg).backbone.pretrained == "laion2b_s34b_b79k"


@pytest.mark.parametrize("file", METHOD_FILES, ids=lambda file: file.stem)
def test_dassl_merges_the_same_configuration(file):
    for dataset, shots in (("EuroSAT", 1), ("OxfordPets", 16)):
        cfg = dassl_cfg()
        extend_cfg(cfg)
        logging.disable(logging.CRITICAL)
        cfg.merge_from_file(str(file))
        logging.disable(logging.NOTSET)
        opts = ["DATASET.NAME", dataset, "DATASET.NUM_SHOTS", shots, "TRAINER.NAME", "HeGraphAdapter"]
        cfg.merge_from_list(opts)
        cfg.freeze()
        loaded = load_cfg("", str(file), opts=opts)
        of_dassl = from_dassl(cfg)
        changed = {key for key, value in loaded.values.items() if of_dassl.values[key] != value}
        assert changed == set(config.BACKBONE_KEYS) and loaded.backbone.name  # Dassl's belong to other networks
        assert (loaded.training.warmup_epochs, loaded.training.warmup_lr) == (1, 1e-5)  # as CoOp warms up


# The shipped files


def test_data_set_files_set_the_name_only():
    for file in (CONFIGS / "datasets").glob("*.yaml"):
        loaded = load_cfg(str(file)).values
        several = {f"{NODE}.VARIANT"} if file.stem in ("digit_scenes", "multilabel") else set()  # labels per image
        assert {key for key, value in load_cfg().values.items() if value != loaded[key]} == {"DATASET.NAME"} | several


@pytest.mark.parametrize("name", [file.stem for file in METHOD_FILES if file.stem.endswith("_paper")])
def test_paper_files_have_the_papers_epochs_and_rates(name):
    # Section 4.1: 30 epochs, 100 on EuroSAT, DTD and FGVCAircraft; rate 0.001, 0.01 on FGVCAircraft
    by_dataset = (("ImageNet", 30, 0.001), ("EuroSAT", 100, 0.001), ("DescribableTextures", 100, 0.001))
    for dataset, epochs, rate in (*by_dataset, ("FGVCAircraft", 100, 0.01)):
        for shots in (1, 16):
            found = load_cfg("", name, {"DATASET.NAME": dataset, "DATASET.NUM_SHOTS": shots}).training
            assert (found.epochs, found.learning_rate, found.visual_weight) == (epochs, rate, 0.1)
    ours, paper = load_cfg("", name.removesuffix("_paper")), load_cfg("", name)
    assert (ours.backbone, ours.encoding, ours.data) == (paper.backbone, paper.encoding, paper.data)


def test_mini_means_the_embedded_backbone():
    for words in (["MODEL.BACKBONE.NAME", "mini"], ["MODEL.BACKBONE.NAME", "hegraph-mini"]):
        assert load_cfg("digits", "", opts=words).backbone.name == "hegraph-mini"
    assert load_cfg("digits", "", {"MODEL.BACKBONE.NAME": "mini"}).backbone.name == "hegraph-mini"
    assert load_cfg("digits", "mini").backbone.name == "hegraph-mini"


def test_another_backbone_takes_its_own_normalisation():
    """Also a bundle, which brings its weights along."""
    for name in ("ViT-B-16-SigLIP", "local-dir:somewhere"):
        backbone = load_cfg("digits", "vit_b16", {"MODEL.BACKBONE.NAME": name}).backbone
        assert (backbone.input_size, backbone.mean, backbone.std) == ((), [], [])
    assert backbone.pretrained == ""


def test_input_keys_on_the_command_line_hold_for_another_backbone():
    words = ["MODEL.BACKBONE.NAME", "mini", "INPUT.SIZE", "(64, 64)"]
    backbone = load_cfg("digits", "vit_b16", opts=words).backbone
    assert (backbone.input_size, backbone.mean) == ((64, 64), [])


def test_default_backbone_is_that_of_its_configuration():
    backbone = load_cfg("folder", DEFAULT_BACKBONE.config).backbone
    assert (backbone.name, backbone.pretrained) == (DEFAULT_BACKBONE.model, DEFAULT_BACKBONE.weights)
    assert parse_labels(["check", "--root", "x"]).config_file == DEFAULT_BACKBONE.config
    assert find_encoder(read_encoder(Path("none")), "", "") == (DEFAULT_BACKBONE.model, DEFAULT_BACKBONE.weights)
