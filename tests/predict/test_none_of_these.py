"""`predict --keep`: images that score lower than those of known classes are marked, in every format."""

from __future__ import annotations

import csv
import io
import json
import shutil

import pytest
from PIL import Image

from trainers.hegraph.models.folder import load_model, save_model
from trainers.hegraph.models.images import ImageModel
from trainers.hegraph.predict.__main__ import main
from trainers.hegraph.predict.rows import Csv, JsonLines, Row, Table

TOP = [("ant", 0.9), ("bee", 0.1)]


def test_every_format_marks_an_image_of_none_of_these():
    known, unknown, failed = Row("a", TOP, known=True), Row("b", TOP, known=False), Row("c", error="why")
    table = Table(asked=True)
    assert table(known) == "a  ant  90.00 %  (bee 10.00 %)\n"
    assert table(unknown) == "b  none of these           (ant 90.00 %, bee 10.00 %)\n"
    lines = Csv(asked=True)
    assert lines.header == "path,class,probability,rank,error,none_of_these\n"
    assert lines(unknown) == "b,ant,0.9,1,,true\nb,bee,0.1,2,,true\n"
    assert lines(known) == "a,ant,0.9,1,,false\na,bee,0.1,2,,false\n"
    assert lines(failed) == "c,,,,why,\n"
    marks = [json.loads(JsonLines(asked=True)(row))["none_of_these"] for row in (known, unknown, failed)]
    assert marks == [False, True, None]
    assert "none_of_these" not in JsonLines()(unknown) and "none_of_these" not in Csv().header


@pytest.fixture
def images(tmp_path, write_digit):
    """A folder of ten digits and one grey picture."""
    for row in range(10):
        write_digit(tmp_path / "images" / f"{row}.png", row)
    Image.new("L", (8, 8), 128).save(tmp_path / "images" / "grey.png")
    return tmp_path / "images"


def test_what_is_marked_scores_below_the_threshold(digits_run, images, tmp_path, capsys):
    model = ImageModel.load(digits_run)
    paths = sorted(str(path) for path in images.iterdir())
    logits = model.logits(model.features(paths))
    expected = [not known for known in model.model.is_known(logits, 0.5).tolist()]
    assert 0 < sum(expected) < 11  # the share is low, so that some are marked
    assert main([str(digits_run), str(images), "--keep", "0.5", "--format", "jsonl"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["path"] for row in rows] == paths
    assert [row["none_of_these"] for row in rows] == expected
    assert main([str(digits_run), str(images), "--keep", "0.5", "--format", "csv", "--top", "1"]) == 0
    found = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["none_of_these"] == "true" for row in found] == expected
    assert main([str(digits_run), str(images), "--keep", "0.5", "--sort-into", str(tmp_path / "sorted")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ["none of these" in line for line in lines] == expected
    assert len(list((tmp_path / "sorted" / "none of these").iterdir())) == sum(expected)


def test_a_class_of_that_name_shares_no_folder_with_images_of_none(digits_run, images, tmp_path, capsys):
    model, target = tmp_path / "model", tmp_path / "sorted"
    shutil.copytree(digits_run / "model", model)
    config = json.loads((model / "config.json").read_text())
    config["classnames"][0] = "none of these"
    (model / "config.json").write_text(json.dumps(config))
    assert main([str(model), str(images), "--keep", "0.5", "--sort-into", str(target)]) == 2
    assert "leave out --keep or --sort-into" in capsys.readouterr().err
    assert not target.exists()
    assert main([str(model), str(images), "--sort-into", str(target)]) == 0
    assert main([str(model), str(images), "--keep", "0.5"]) == 0


def test_without_keep_nothing_is_marked(digits_run, images, capsys):
    assert main([str(digits_run), str(images)]) == 0
    assert "none of these" not in capsys.readouterr().out


@pytest.mark.parametrize("share", ["0", "1", "95", "-0.1", "nan"])
def test_a_share_that_is_none_is_refused(digits_run, images, capsys, share):
    assert main([str(digits_run), str(images), f"--keep={share}"]) == 2
    assert "--keep must lie between 0 and 1" in capsys.readouterr().err


def test_a_model_without_a_threshold_says_so_before_anything_is_read(digits_run, images, tmp_path, capsys):
    save_model(load_model(digits_run).model_copy(update={"known": None}), tmp_path / "old")
    assert main([str(tmp_path / "old"), str(images), "--keep", "0.95"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "train it again" in err and err.count("\n") == 1
