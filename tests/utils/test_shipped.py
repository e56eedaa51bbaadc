"""A configuration file that ships is found by its name; a path is a path."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainers.hegraph.utils.errors import UserError
from trainers.hegraph.utils.shipped import DATA_SET, METHOD, find_config_file

CONFIGS = Path(__file__).parents[2] / "configs"


def test_every_file_that_ships_is_found_by_its_name():
    for kind, folder in ((DATA_SET, "datasets"), (METHOD, "trainers/HeGraphAdapter")):
        files = sorted((CONFIGS / folder).glob("*.yaml"))
        assert files and [find_config_file(kind, file.stem) for file in files] == files


def test_a_file_of_that_name_wins_but_a_folder_does_not_and_a_path_to_nothing_stays_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    (tmp_path / "mini").write_text("SEED: 5\n")
    assert find_config_file(DATA_SET, "digits") == CONFIGS / "datasets" / "digits.yaml"
    assert find_config_file(METHOD, "mini") == Path("mini")
    for path in ("nowhere.yaml", "nowhere/mini"):
        assert find_config_file(METHOD, path) == Path(path)


@pytest.mark.parametrize(("kind", "name", "near"), [(DATA_SET, "digit", "digits"), (METHOD, "vit_b61", "vit_b16")])
def test_an_unknown_name_is_a_users_mistake_and_the_nearest_is_named(kind, name, near):
    with pytest.raises(UserError, match=f"unknown {kind} configuration '{name}'; did you mean '{near}'"):
        find_config_file(kind, name)
    with pytest.raises(UserError, match="unknown method configuration 'digits'"):  # it is one of a data set
        find_config_file(METHOD, "digits")
