"""Photos of phones and cameras: all entry points of the package read the same pixels."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from trainers.hegraph import HeGraphClassifier, UserError, load_few_shot
from trainers.hegraph.apps.demo.answer import compute_answer
from trainers.hegraph.commands.predict import main as predict
from trainers.hegraph.datasets.images import TURNS, is_image, open_image, to_rgb
from trainers.hegraph.models.images import ImageModel

BLOCKS = np.random.default_rng(3).integers(0, 256, (3, 4, 3), dtype=np.uint8)
UPRIGHT = Image.fromarray(BLOCKS.repeat(16, 0).repeat(16, 1))  # of 64 x 48 pixels, without any symmetry
ORIENTATION = 0x0112
XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
INVERSE = {Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270, Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90}


def exif(orientation: int) -> Image.Exif:
    (tags := Image.Exif())[ORIENTATION] = orientation
    return tags


def stored(orientation: int, image: Image.Image = UPRIGHT) -> Image.Image:
    """Pixels that a camera stores for an upright image."""
    turn = None if orientation == 1 else TURNS[orientation - 2]
    return image if turn is None else image.transpose(INVERSE.get(turn, turn))


def faded(mode: str) -> Image.Image:
    """Image with black in its transparent part, which a plain conversion to RGB would show."""
    image = UPRIGHT.convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 32, 48))
    return image.convert(mode)


def palette() -> tuple[Image.Image, int]:
    image = UPRIGHT.quantize(16)
    return image, image.getpixel((0, 0))


def mpo(path: Path) -> None:
    """Write two frames to one file, as phones do for depth or a second lens."""
    frame = stored(6)
    frame.save(path, "MPO", save_all=True, append_images=[frame.rotate(180)], exif=exif(6), quality=95)


SIXTEEN = np.asarray(UPRIGHT.convert("L")).astype(np.uint16) * 257
PHOTOS: dict[str, Callable[[Path], object]] = {
    **{f"{n}.jpg": lambda path, n=n: stored(n).save(path, exif=exif(n), quality=95) for n in range(1, 9)},
    "progressive.jpg": lambda path: stored(8).save(path, exif=exif(8), progressive=True, quality=95),
    "mpo.jpg": mpo,
    "cmyk.jpg": lambda path: UPRIGHT.convert("CMYK").save(path, quality=95),
    "grey.jpg": lambda path: stored(3).convert("L").save(path, exif=exif(3), quality=95),
    "exif.png": lambda path: stored(5).save(path, exif=exif(5)),
    "exif.webp": lambda path: stored(7).save(path, exif=exif(7).tobytes(), lossless=True),
    "exif.tif": lambda path: stored(6).save(path, exif=exif(6)),
    "xmp.webp": lambda path: stored(6).save(path, xmp=XMP.encode(), lossless=True),
    "rgba.png": lambda path: faded("RGBA").save(path),
    "la.png": lambda path: faded("LA").save(path),
    "p.png": lambda path: palette()[0].save(path, transparency=palette()[1]),
    "p.gif": lambda path: palette()[0].save(path, transparency=palette()[1]),
    "16.png": lambda path: Image.fromarray(SIXTEEN).save(path),
    "1.png": lambda path: UPRIGHT.convert("1").save(path),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory, mini) -> Path:
    """Folder of a training-free model with two classes."""
    images = [UPRIGHT, UPRIGHT.rotate(90), UPRIGHT.convert("L"), UPRIGHT.rotate(180)]
    folder = tmp_path_factory.mktemp("model")
    HeGraphClassifier(config="mini", variant="training_free").fit(images, ["a", "b", "a", "b"]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(model) -> HeGraphClassifier:
    return HeGraphClassifier.from_pretrained(model)


@pytest.fixture(scope="module")
def predictor(model) -> ImageModel:
    return ImageModel.load(model)


@pytest.fixture
def photo(request, tmp_path) -> Path:
    """Photo in a folder of own images."""
    path = tmp_path / "train" / "a" / request.param
    path.parent.mkdir(parents=True)
    PHOTOS[request.param](path)
    return path


every_photo = pytest.mark.parametrize("photo", PHOTOS, indirect=True)


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(torch.as_tensor(found).float(), torch.as_tensor(expected).float(), rtol=0, atol=1e-5)


@pytest.fixture
def images_of(photo) -> list:
    """The photo as a path and as all kinds of images."""
    opened = load_few_shot("ImageFolder", str(photo.parents[2]), shots=1, seed=1).open(f"train/a/{photo.name}")
    return [photo, str(photo), Image.open(photo), open_image(photo), opened]


@every_photo
def test_features_of_a_photo_are_equal_everywhere(photo, images_of, mini, predictor):
    expected = mini.encode_images(torch.stack([mini.preprocess(to_rgb(Image.open(photo)))]))
    for image in images_of:
        assert close(mini.encode_images([image]), expected)
        assert close(mini.encode_images(mini.preprocess(image)[None]), expected)
        assert close(predictor.features([image]), expected)


@every_photo
def test_probabilities_of_a_photo_are_equal_everywhere(photo, images_of, classifier, model, capsys):
    assert predict([str(model), str(photo), "--format", "jsonl"]) == 0
    [row] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = {each["class"]: each["probability"] for each in row["top"]}
    for image in images_of:
        assert classifier.predict_proba([image])[0].tolist() == pytest.approx([expected["a"], expected["b"]], abs=1e-4)


@every_photo
def test_the_demo_shows_the_probabilities_of_predict(photo, classifier, predictor, model):
    reason = "gradio is not installed, which shows the page"
    page = pytest.importorskip("trainers.hegraph.apps.demo.page", reason=reason)
    answers = page.Answers(lambda: (predictor.model, predictor.backbone), str, photo.parent)
    picture = answers.open(page.Request(path=str(photo)), predictor.backbone)
    scores = compute_answer(predictor.model, predictor.features([picture])).scores
    shown = {each.name: each.adapted for each in scores}
    assert [shown["a"], shown["b"]] == pytest.approx(classifier.predict_proba([photo])[0].tolist(), abs=1e-5)


@every_photo
def test_opened_photo_is_upright(photo):
    once = open_image(photo)
    assert (once.mode, once.size, to_rgb(once).tobytes()) == ("RGB", UPRIGHT.size, once.tobytes())
    assert ORIENTATION not in once.getexif() and "transparency" not in once.info
    if photo.suffix == ".jpg":
        assert once.tobytes() == ImageOps.exif_transpose(Image.open(photo)).convert("RGB").tobytes()
    if "exif" in photo.name or "xmp" in photo.name:  # without loss
        assert once.tobytes() == UPRIGHT.tobytes()


@pytest.mark.parametrize("photo", ["6.jpg", "exif.tif", "rgba.png", "p.png"], indirect=True)
def test_as_stored_image_is_not_rotated_later(photo):
    as_dassl = Image.open(photo).convert("RGB")
    assert to_rgb(open_image(photo, as_stored=True)).tobytes() == as_dassl.tobytes()


def test_colour_profile_stays(tmp_path):
    UPRIGHT.save(tmp_path / "a.png", icc_profile=b"a profile", dpi=(72, 72))
    assert open_image(tmp_path / "a.png").info == {"icc_profile": b"a profile"}


# --- encode_images


def test_many_images_are_encoded_in_order(mini):
    images = [UPRIGHT.rotate(turn) for turn in range(0, 350, 50)]
    expected = torch.cat([mini.encode_images([image]) for image in images])
    assert expected.shape == (7, mini.width) and expected.dtype == torch.float32
    assert close(mini.encode_images(images, batch_size=3), expected)
    assert mini.encode_images([]).shape == (0, mini.width)


@pytest.mark.parametrize(("name", "images", "message"), [
    ("encode_images", "a.jpg", "images: expected a list of paths or of PIL images, .*, got 'a.jpg'"),
    ("encode_images", [1], "expected a path or a PIL image, got 1"),
    ("encode_images", UPRIGHT, "images: expected a list"),
    ("encode_images", ["/none.jpg"], "cannot read /none.jpg: No such file or directory"),
    ("preprocess", __file__, "cannot read .*test_photos.py: is not an image"),
    ("preprocess", 3, "expected a path .* got 3"),
])  # fmt: skip
def test_other_inputs_are_refused(mini, name, images, message):
    with pytest.raises(UserError, match=message):
        getattr(mini, name)(images)


# --- HEIC


@pytest.fixture
def heic(tmp_path) -> Path:
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed, which reads HEIC images")
    path = tmp_path / "IMG_1.HEIC"
    heif.register_heif_opener()
    stored(6).save(path, "HEIF", exif=exif(6).tobytes(), quality=95)
    Image.OPEN.pop("HEIF")  # as in a program that has read no HEIC file
    Image.ID.remove("HEIF")
    return path


def test_heic_images_are_read_upright(heic, mini):
    assert is_image(heic.name)
    for source in (heic, str(heic), heic.read_bytes()):
        image = open_image(source)
        assert image.size == UPRIGHT.size
        assert np.abs(np.asarray(image).astype(int) - np.asarray(UPRIGHT)).mean() < 12
    heic.rename(heic.with_suffix(".jpg"))  # as some programs send it
    assert close(mini.encode_images([heic.with_suffix(".jpg")]), mini.encode_images([image]))


@pytest.mark.parametrize("read", [Path, Path.read_bytes])
def test_heic_without_pillow_heif_is_refused(heic, monkeypatch, read):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    Image.new("RGB", (8, 8)).save(heic.with_name("a.jpg"))
    assert open_image(heic.with_name("a.jpg")).size == (8, 8)
    with pytest.raises(ValueError, match="is a HEIC image: `pip install pillow-heif`, or convert it to JPEG"):
        open_image(read(heic))


def test_damaged_heic_image_is_refused(heic, tmp_path, mini):
    (tmp_path / "cut.heic").write_bytes(heic.read_bytes()[:200])
    with pytest.raises(UserError, match="cannot read .*cut.heic: [^\n]+$"):
        mini.encode_images([tmp_path / "cut.heic"])
