"""What the tests of the Hub have a process of its own do: huggingface_hub reads HF_ENDPOINT when it is imported.

It uploads and downloads models, and prints as JSON what came of each step: the result, or the type and text of the
error.
"""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Callable

import numpy as np
from fake_hub import TOKEN

from trainers.hegraph import HeGraphClassifier
from trainers.hegraph.models import hub


def result_of(step: Callable[[], object]) -> object:
    try:
        return step()
    except Exception as error:
        return [type(error).__name__, str(error)]


def main() -> None:
    log = io.StringIO()
    logging.basicConfig(level=logging.DEBUG, stream=log)
    random = np.random.default_rng(0)
    X, y = random.normal(size=(40, 8)), np.repeat([3, 5], 20)
    X[:20] += 2
    quick = {"OPTIM.MAX_EPOCH": 2, "TRAINER.HEGRAPHADAPTER.MIN_STEPS": 0}
    first = HeGraphClassifier(options=quick).fit(X, y)
    second = HeGraphClassifier(options=quick, variant="T").fit(X, y)
    load = HeGraphClassifier.from_pretrained

    def variant(*arguments: object, **named: object) -> object:
        return result_of(lambda: load(*arguments, **named).model_.variant)

    found = {
        "pushed": result_of(lambda: first.push_to_hub("user/shapes", token=TOKEN, commit_message="The first one")),
        "pushed to a branch": result_of(lambda: second.push_to_hub("user/shapes", token=TOKEN, revision="text")),
        "pushed privately": result_of(lambda: second.push_to_hub("user/secret", token=TOKEN, private=True)),
        "pushed without a token": result_of(lambda: first.push_to_hub("user/shapes", token="hf_WrongOne")),
        "pushed nowhere": result_of(lambda: first.push_to_hub("shapes", token=TOKEN)),
        "main": variant("user/shapes"),
        "branch": variant("user/shapes", revision="text"),
        "private without a token": variant("user/secret"),
        "private": variant("user/secret", token=TOKEN),
        "no such model": variant("user/absent"),
        "no such revision": variant("user/shapes", revision="v9"),
        "no model": variant("other/thing"),
        "no name": variant("a--b/c"),
        "labels": load("user/shapes").predict(X).tolist() == first.predict(X).tolist(),
        "parameters": repr(load("user/secret", token=TOKEN).get_params()),
        "files": sorted(path.name for path in hub.find_model("other/extras").iterdir()),
        "log": log.getvalue(),
    }
    sys.stdout.write(json.dumps(found))


main()
