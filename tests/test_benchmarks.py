"""Benchmarks run at small sizes, without limits on time. A mutation test finds the tests of each file."""

import importlib
import json
import math
from pathlib import Path

import pytest

from benchmarks import train_step
from benchmarks.__main__ import NAMES, main
from benchmarks.graph_step import rebuilt
from benchmarks.report import Report
from benchmarks.tasks import layer_of_the_paper, random_bank, start_training
from benchmarks.timing import alternate, process, ratio
from tools.mutation.tests_of_change import belonging_tests
from trainers.hegraph.method.graph import build_graph, class_prototypes

# Differences, which may be negative at small sizes
DIFFERENCES = {"Ray's cost per run, ms", "wrong answers"}
DIFFERENCES |= {
    f"{variant}, halves of the {part}, points"
    for variant in ("training_free", "full")
    for part in ("images", "classes")
}


def test_benchmarks_can_be_imported():
    for name in NAMES:
        assert importlib.import_module(f"benchmarks.{name.replace('-', '_')}").run


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_benchmark_runs_and_writes_its_figures(name, request, tmp_path, capsys, tiny_bank, monkeypatch):
    if name == "peers":  # its banks are not part of the repository
        (tmp_path / "banks").mkdir()
        tiny_bank.rename(tmp_path / "banks" / "oxford_pets.safetensors")
        monkeypatch.setenv("HEGRAPH_SHARED", str(tmp_path))
    if name == "precision":
        pytest.importorskip("transformers.models", reason="the extra `transformers` is not installed")
    if name == "ray":
        pytest.importorskip("ray", reason="Ray is not installed")
    if name == "serve":
        pytest.importorskip("fastapi_offline", reason="the extra `serve` is not installed")
        pytest.importorskip("httpx", reason="httpx is not installed, which sends the requests")
    file = tmp_path / "figures.json"
    assert main([name, "--small", "--json", str(file)]) == 0
    figures = json.loads(file.read_text())
    assert figures["rows"]
    for row, figure in figures["targets"].items():
        assert set(figure) == {"value", "target", "met"} and math.isfinite(figure["value"])
        assert figure["value"] > 0 or row in DIFFERENCES
    printed = capsys.readouterr().out
    assert printed.startswith(figures["title"]) and all(row in printed for row in figures["targets"])


def test_targets_are_upper_or_lower_limits():
    report = Report("title", ["what", "ms"], [["ours", 1234.5], ["theirs", 0.01234]])
    report.at_most("slow", 1.5, 1.5)
    report.at_most("slower", 1.51, 1.5)
    report.at_least("fast", 8.0, 8.0)
    report.at_least("less so", 7.99, 8.0)
    assert [figure["met"] for figure in report.targets.values()] == [True, False, True, False]
    assert str(report).splitlines() == [
        "title", "", "| what | ms |", "| --- | --- |", "| ours | 1234 |", "| theirs | 0.0123 |", "",
        "slow: 1.5, target 1.5: met", "slower: 1.51, target 1.5: MISSED", "fast: 8, target 8: met",
        "less so: 7.99, target 8: MISSED",
    ]  # fmt: skip


def test_functions_run_alternately():
    calls: list[str] = []
    for repeats, rounds in ((2, 3), (1, 1)):
        calls.clear()
        seconds = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats)
        assert calls == ["a", "b"] * rounds
        assert {name: len(s) for name, s in seconds.items()} == {"a": repeats, "b": repeats}
    assert ratio([2.0, 30.0, 4.0], [1.0, 1.0, 1.0]) == 4.0


def test_failed_process_gives_its_reason():
    with pytest.raises(RuntimeError, match=r"No module named .*no_such_benchmark"):
        process("benchmarks.no_such_benchmark")


def test_multiply_adds_of_a_step_by_hand():
    # K=2, d=3, N=4, B=5: 13 * 2*9 for the messages, 2 * 2*2*3 aggregated, text 2*5*2*3, cache 5*4*3 + 2*5*2*3
    assert train_step.multiply_adds(2, 3, 4, 5) == 234 + 24 + 60 + 60 + 60


def test_pyg_step_and_rebuilt_graph_equal_ours():
    bank = random_bank(6, 8, shots=3)
    ours, theirs = (start_training(bank, layer_of_the_paper()) for _ in range(2))
    visual = class_prototypes(bank.cache_keys(), bank.train_labels, bank.classnames)
    graph = build_graph(bank.text_positive, bank.text_negative, visual)
    for nodes, same in zip(ours.model.layers(), rebuilt(graph, ours.model.layers)):
        assert (nodes - same).abs().max() < 1e-6
    batch = next(ours.data.epoch(1))
    ours.step(batch)
    train_step.pyg_step(theirs.model, graph, batch)()
    gradients = {name: parameter.grad for name, parameter in ours.model.named_parameters()}
    for name, parameter in theirs.model.named_parameters():
        assert (gradients[name] - parameter.grad).abs().max() < 1e-4 * parameter.grad.abs().max(), name


# Mutation tests


ROOT = Path(__file__).parents[1]
SOURCE = '''"""Words."""
RATES: Defaults = {"LR": 1e-3}
WIDTH = 4


def double(x: int | None = 3) -> int | None:
    logger.info("twice %d", 2 + 2)
    if x > 1:
        raise ValueError(f"got {1 + 1}")
    y: int | None = 5
    return 2 * x
'''


def test_every_source_has_tests_for_mutation():
    sources = [path.relative_to(ROOT).as_posix() for path in (ROOT / "trainers" / "hegraph").rglob("*.py")]
    assert sources and all(belonging_tests([source]) for source in sources)
    assert belonging_tests(["trainers/hegraph/method/training/choice.py"]) == ["tests/method/training"]
    assert belonging_tests(["trainers/hegraph/config.py", "README.md"]) == ["tests/test_config.py"]
    assert belonging_tests([]) == []


def test_mutants_without_behaviour_are_excluded():
    pytest.importorskip("cosmic_ray", reason="cosmic-ray is not installed: pip install -e '.[mutation]'")
    from tools.mutation.sample import has_behaviour

    table, annotations, log, words = ("1e-3",), ("| None = 3", "| None:"), ("+ 2)",), ("+ 1}",)
    for place in (*table, *annotations, *log, *words, "4", "3) ->", "> 1", "5", "* x"):
        [(number, line)] = [(n, line) for n, line in enumerate(SOURCE.splitlines(), start=1) if place in line]
        excluded = place in table + annotations + log + words
        assert has_behaviour((number, line.index(place)), SOURCE) != excluded, place
