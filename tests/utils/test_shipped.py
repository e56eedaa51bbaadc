"""A configuration file that ships is found by its name; a path is a path."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainers.hegraph.config_files import load_cfg
from trainers.hegraph.utils.errors import UserError
from trainers.hegraph.utils.shipped import DATA_SET, METHOD, find_config_file

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    ("kind", "file"),
    [(DATA_SET, file) for file in sorted((CONFIGS / "datasets").glob("*.yaml"))]
    + [(METHOD, file) for file in sorted((CONFIGS / "trainers" / "HeGraphAdapter").glob("*.yaml"))],
    ids=lambda value: getattr(value, "stem", value),
)
def test_every_file_that_ships_is_found_by_its_name(kind, file):
    assert find_config_file(kind, file.stem) == file


def test_names_give_the_configuration_that_the_paths_give():
    paths = (CONFIGS / "datasets" / "digits.yaml", CONFIGS / "trainers" / "HeGraphAdapter" / "mini.yaml")
    assert load_cfg("digits", "mini") == load_cfg(*map(str, paths))
    assert load_cfg("digits", "mini").DATASET.NAME == "Digits"


def test_a_file_of_that_name_wins_but_a_folder_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    (tmp_path / "mini").write_text("SEED: 5\n")
    assert find_config_file(DATA_SET, "digits") == CONFIGS / "datasets" / "digits.yaml"
    assert find_config_file(METHOD, "mini") == Path("mini")
    assert load_cfg("digits", "mini").SEED == 5


@pytest.mark.parametrize(("kind", "name", "nearest"), [(DATA_SET, "digit", "digits"), (METHOD, "vit_b61", "vit_b16")])
def test_an_unknown_name_is_a_users_mistake_and_the_nearest_is_named(kind, name, nearest):
    with pytest.raises(UserError, match=f"unknown {kind} configuration '{name}'; did you mean '{nearest}'"):
        find_config_file(kind, name)


def test_a_data_set_is_not_found_among_the_methods():
    with pytest.raises(UserError, match=r"unknown method configuration 'digits' .*mini, mini_paper"):
        load_cfg("", "digits")


@pytest.mark.parametrize("path", ["nowhere.yaml", "nowhere/mini", "configs/datasets/digit.yaml"])
def test_a_path_to_nothing_stays_a_path(path):
    assert find_config_file(METHOD, path) == Path(path)
    with pytest.raises(UserError, match="cannot read the configuration|unknown configuration in"):
        load_cfg("", path)
