"""Writers of one model folder that are killed at any moment: no answered change is lost, and none is half done."""

import asyncio
import io
import multiprocessing
import os
import random
import sys
import time
from contextlib import suppress
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from recorded import wait_for
from serving import client_of

from trainers.hegraph.__main__ import main
from trainers.hegraph.apps.serve.learning import Learner, hex_ids
from trainers.hegraph.estimator.incremental import image_ids
from trainers.hegraph.models.folder import load_model
from trainers.hegraph.utils.locks import Locked

ROUNDS = int(os.environ.get("HEGRAPH_KILL_ROUNDS", "3"))
LABELS = ("zero", "one", "two")


def picture(seed: int) -> Image.Image:
    """Image of random pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8))


def acknowledge(acknowledged: Path, text: str) -> None:
    """Append a line to a file, which a killed process leaves complete."""
    file = os.open(acknowledged, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{text}\n".encode())
    os.close(file)


def learn(folder: Path, acknowledged: Path, first: int) -> None:
    """Add images for ever with three writers of one server, as soon as the folder is free."""
    while True:
        try:
            learner = Learner.load(folder)
            break
        except Locked:
            time.sleep(0.02)

    async def write(writer: int) -> None:
        for number in count():
            data = io.BytesIO()
            picture(first + 3 * number + writer).save(data, "PNG")
            [id] = await learner.add([("", data.getvalue())], [[LABELS[writer]]])
            acknowledge(acknowledged, id)

    async def write_all() -> None:
        await asyncio.gather(*(write(writer) for writer in range(3)))

    asyncio.run(write_all())


def extend(folder: Path, acknowledged: Path, first: int) -> None:
    """Add images for ever with `train-more --in-place`, which is refused while the server lives."""
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for number in count(first):
        place = acknowledged.parent / "photos" / str(number) / "train" / "nine"
        place.mkdir(parents=True)
        picture(number).save(place / "1.png")
        [id] = hex_ids(image_ids([place / "1.png"]))
        while main(["train-more", str(folder), "--root", str(place.parents[1]), "--in-place"]):
            time.sleep(0.02)
        acknowledge(acknowledged, id)
        time.sleep(1)  # lets the server have the folder


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def wait_for_line(path: Path, number: int) -> None:
    """Wait until a file has more than a number of lines."""
    wait_for(lambda: len(lines(path)) > number, 300)


@pytest.mark.slow
def test_killed_writers_lose_nothing(folder, tmp_path):
    # Not "fork": PyTorch's threads, which this process has started, are missing in a fork. Not "forkserver": all tests
    # of a process share its server, and others run another checkout in it
    spawn = multiprocessing.get_context("spawn")
    chance = random.Random(1)
    files = {learn: tmp_path / "learned", extend: tmp_path / "extended"}
    before = len(load_model(folder).support_set.ids)
    for number in range(ROUNDS):
        done = {writer: len(lines(file)) for writer, file in files.items()}
        processes = {}
        for writer, file in files.items():
            first = 10_000_000 * (writer is extend) + 10_000 * number
            processes[writer] = spawn.Process(target=writer, args=(folder, file, first))
            processes[writer].start()
        for writer in (learn, extend):  # the second one may write when the first one is dead
            wait_for_line(files[writer], done[writer])
            time.sleep(chance.random() / 2)
            processes[writer].kill()
            processes[writer].join()
        ids = hex_ids(load_model(folder).support_set.ids)
        answered = {id for file in files.values() for id in lines(file)}
        assert answered <= {*ids}
        assert before + len(answered) <= len(ids) <= before + len(answered) + 4 * (number + 1)  # and unanswered ones
    with client_of(folder, learn=True) as client:
        assert client.post("/v1/examples", json={"classes": ["letter"]}).status_code == 200
    with suppress(FileNotFoundError):
        assert not [path for path in folder.parent.iterdir() if path.name.endswith((".tmp", ".owner", ".lock"))]
