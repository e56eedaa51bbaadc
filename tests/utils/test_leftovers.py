"""What a process that was killed has left half-written is removed by the next one that writes there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trainers.hegraph.utils.errors import UserError
from trainers.hegraph.utils.files import STARTED, absolute, atomic_path, write_json, writing_folder

ROOT = Path(__file__).parents[2]
KILLED = """
import os, signal, sys
from pathlib import Path
from trainers.hegraph.utils import files
def write(target):
    with files.{writer}(Path(target)) as temporary:
        {work}
        os.kill(os.getpid(), signal.SIGKILL)
write(sys.argv[1])
"""


def killed_while(writer: str, work: str, target: Path) -> None:
    code = KILLED.format(writer=writer, work=work)
    done = subprocess.run([sys.executable, "-c", code, str(target)], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL


def test_a_temporary_file_of_a_killed_process_is_removed(tmp_path):
    killed_while("atomic_path", "temporary.write_text('half')", tmp_path / "result.json")
    assert len(os.listdir(tmp_path)) == 1
    write_json(tmp_path / "other.json", 1)
    assert os.listdir(tmp_path) == ["other.json"]


def test_a_temporary_folder_of_a_killed_process_is_removed(tmp_path):
    killed_while("writing_folder", "(temporary / 'config.json').write_text('half')", tmp_path / "model")
    with writing_folder(tmp_path / "model") as temporary:
        (temporary / "config.json").write_text("whole")
    assert os.listdir(tmp_path) == ["model"]
    assert (tmp_path / "model" / "config.json").read_text() == "whole"


def test_a_folder_that_was_being_replaced_is_put_back(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("old")
    work = "os.replace(sys.argv[1], temporary.parent / 'old')"
    killed_while("writing_folder", work, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    write_json(tmp_path / "other.json", 1)
    assert (tmp_path / "model" / "config.json").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["model", "other.json"]


def test_a_killed_process_may_have_had_the_number_of_this_one(tmp_path):
    with atomic_path(tmp_path / "a") as mine:
        mine.write_text("a")
        earlier = mine.with_name(mine.name.replace(STARTED, "00000000"))  # as in a container that is started again
        earlier.write_text("half")
        write_json(tmp_path / "b.json", 1)
        assert mine.exists() and not earlier.exists()


def test_the_temporary_files_of_a_living_process_and_other_files_stay(tmp_path):
    (tmp_path / ".x.abc.tmp").write_text("another program's")
    with atomic_path(tmp_path / "a") as first:
        first.write_text("a")
        write_json(tmp_path / "b.json", 1)
        assert first.exists()
    assert sorted(os.listdir(tmp_path)) == [".x.abc.tmp", "a", "b.json"]


def test_the_home_folder_of_nobody_is_a_users_mistake():
    with pytest.raises(UserError, match="~nosuchuser/data begins with the home folder of a user that is not known"):
        absolute("~nosuchuser/data")
    assert absolute("~") == Path.home()
