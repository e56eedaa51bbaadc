"""Program of the test of FiftyOne: make a dataset with planted wrong labels, run the operator, print the result.

    python fiftyone_run.py FOLDER [PORT]

`FOLDER` has the images as CLASS/NUMBER.png. With a port, the App is served there until standard input ends.
"""

import json
import subprocess
import sys
from pathlib import Path

import fiftyone as fo
import fiftyone.operators as foo

URI = "@hegraph/hegraph/train_and_predict"
LABELLED, WRONG = 12, 3  # images of each class with a label; wrong labels among them


def make_dataset(folder: Path) -> fo.Dataset:
    """Dataset whose first images of each class have a label, three of them a wrong one."""
    dataset = fo.Dataset("digits", persistent=True)
    classes = sorted(path.name for path in folder.iterdir())
    samples = []
    for number, name in enumerate(classes):
        for position, path in enumerate(sorted((folder / name).iterdir())):
            wrong = position == 0 and number < WRONG
            sample = fo.Sample(str(path), tags=["planted"] if wrong else [])
            label = classes[(number + 5) % len(classes)] if wrong else name
            sample["ground_truth"] = fo.Classification(label=label) if position < LABELLED else None
            samples.append(sample)
    dataset.add_samples(samples, progress=False)
    return dataset


def main(folder: Path, port: str = "") -> None:
    dataset = make_dataset(folder)
    if port:
        server = [sys.executable, "-m", "fiftyone.server.main", "--port", port, "--address", "127.0.0.1"]
        with subprocess.Popen(server) as process:
            sys.stdin.read()
            process.terminate()
        return
    listed = [operator.uri for operator in foo.list_operators()]
    params = {"labels": "ground_truth", "backbone": "mini", "number": 5}
    result = foo.execute_operator(URI, {"dataset": dataset}, params=params)
    dataset.reload()
    views = {name: dataset.load_saved_view(name) for name in dataset.list_saved_views()}
    answer = {
        "listed": URI in listed,
        "result": result.result,
        "suspicious": [sample.tags for sample in views["hegraph suspicious labels"]],
        "next": views["hegraph label next"].values("hegraph_label_next"),
        "next labels": views["hegraph label next"].values("ground_truth.label"),
        "right": [Path(s.filepath).parent.name == s.hegraph_prediction.label for s in dataset],
        "confidence": views["hegraph least confident"].values("hegraph_prediction.confidence"),
    }
    sys.stdout.write(f"{json.dumps(answer)}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
