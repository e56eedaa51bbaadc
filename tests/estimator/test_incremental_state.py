"""Random sequences of changes of a training-free classifier, compared with one training on the images that remain."""

import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from training_free import LABELS, assert_same, training_free

from trainers.hegraph import HeGraphClassifier, UserError

pytest.importorskip("hypothesis", reason="hypothesis is not installed, which generates the sequences")
from hypothesis import Phase, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

LABEL = st.sampled_from([*LABELS.tolist(), "emu"])  # no image is an emu
IMAGES = st.lists(st.integers(0, 23), min_size=1, max_size=12, unique=True)


class Changes(RuleBasedStateMachine):
    """Changes of a training-free classifier; `present` and `names` are the expected images and classes."""

    X: np.ndarray
    y: np.ndarray
    pool: np.ndarray
    rows: dict[str, np.ndarray]  # class -> its text features

    @initialize(has_text=st.booleans(), adapts=st.booleans(), images=IMAGES)
    def start(self, has_text: bool, adapts: bool, images: list[int]) -> None:
        self.text, self.adapts = self.rows if has_text else {}, adapts
        self.classifier, self.present, self.names = training_free(), list[int](), set[str]()
        self.add(images)
        if adapts:
            self.classifier.adapt(self.pool)

    def text_of(self, y: np.ndarray) -> np.ndarray | None:
        return np.stack([self.text[label] for label in np.unique(y)]) if self.text else None

    def whole(self) -> HeGraphClassifier:
        """The expected classifier, trained at once."""
        X, y, classifier = self.X[self.present], self.y[self.present], training_free()
        if len(X):  # fit refuses a single class
            train = classifier.fit if len({*y}) > 1 else classifier.partial_fit
            train(X, y, text_features=self.text_of(y))
        for label in sorted(self.names - {*y}):
            classifier.add_class(label, text_features=self.text[label])
        return classifier.adapt(self.pool) if self.adapts else classifier

    def expect(self, change: Callable[[], object], allowed: object) -> bool:
        with nullcontext() if allowed else pytest.raises(UserError):
            change()
        return bool(allowed)

    @rule(images=IMAGES)
    def add(self, images: list[int]) -> None:
        new = [row for row in images if row not in self.present]
        if new:
            self.classifier.partial_fit(self.X[new], self.y[new], text_features=self.text_of(self.y[new]))
            self.present += new
            self.names |= {*self.y[new]}

    @rule(images=IMAGES)
    def forget(self, images: list[int]) -> None:
        rest = [row for row in self.present if row not in images]
        allowed = {*images} <= {*self.present} and (self.text or rest)
        if self.expect(lambda: self.classifier.forget(self.X[images], self.y[images]), allowed):
            self.present = rest
            self.names &= {*self.y[rest]} if not self.text else self.names

    @rule(label=LABEL)
    def remove_class(self, label: str) -> None:
        if self.expect(lambda: self.classifier.remove_class(label), label in self.names and len(self.names) > 1):
            self.names.remove(label)
            self.present = [row for row in self.present if self.y[row] != label]

    @rule(label=LABEL)
    def name_class(self, label: str) -> None:
        text = self.text.get(label)
        allowed = self.text and label not in self.names
        if self.expect(lambda: self.classifier.add_class(label, text_features=text), allowed):
            self.names.add(label)

    @rule()
    def save_and_load(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.classifier.save_pretrained(f"{folder}/model")
            card = Path(folder, "model", "README.md").read_text()
            assert ("adapted to 60 unlabelled images" in card) == self.adapts
            self.classifier = HeGraphClassifier.from_pretrained(f"{folder}/model")

    def teardown(self) -> None:
        assert_same(self.classifier, self.whole(), 1e-4 if self.adapts else 1e-5)
        text = self.text_of(self.y)  # `fit` starts again
        assert_same(*(each.fit(self.X, self.y, text_features=text) for each in (self.classifier, training_free())))


def test_changes_in_any_order_equal_one_training(data, labelled):
    text = dict(zip([*LABELS.tolist(), "emu"], [*data.text, -data.text[0]]))
    members = {"X": labelled[0], "y": labelled[1], "pool": data.X[60:], "rows": text}
    steps = settings(max_examples=6, stateful_step_count=10, deadline=None, derandomize=True, phases=[Phase.generate])
    run_state_machine_as_test(type("Bound", (Changes,), members), settings=steps)
