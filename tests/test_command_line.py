"""Public API and command line: names, imports, helps and refusals."""

import inspect
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import FunctionType

import huggingface_hub
import pytest
import torch

import trainers.hegraph as hegraph
from trainers.hegraph.__main__ import SUBCOMMANDS, main
from trainers.hegraph.commands.train import next_commands
from trainers.hegraph.commands.train_arguments import parse_arguments
from trainers.hegraph.features.bank import load_bank
from trainers.hegraph.models.folder import find_model_folder
from trainers.hegraph.utils.option import NODE

ROOT = Path(__file__).parents[1]
LONG = "x" * 300
SLOW = ["torch", "torchvision", "open_clip", "timm", "transformers", "sklearn", "matplotlib"]
SLOW += [] if int(huggingface_hub.__version__.split(".")[0]) < 1 else ["requests"]  # which its old versions import

LARGE = [*SLOW, "requests", "numpy", "pandas", "scipy", "PIL", "huggingface_hub", "pydantic", "yaml", "gradio"]
OPTION_OF_FLAG = {
    "--target-domains": "DATASET.TARGET_DOMAINS",
    "--target-datasets": "DATASET.TARGET_DATASETS",
    "--transforms": "INPUT.TRANSFORMS",
}
# Public name -> its type
CONTRACT = {
    "Backbone": type, "FeatureBank": type, "HeGraphClassifier": type, "HeGraphModel": type, "HeteroGraph": type,
    "LabelIssue": type, "ModelOptions": type, "UserError": type, "build_graph": FunctionType,
    "compare_backbones": FunctionType,
    "load_backbone": FunctionType, "load_bank": FunctionType, "load_cfg": FunctionType, "load_dataset": FunctionType,
    "load_few_shot": FunctionType, "run": FunctionType,
}  # fmt: skip


# Imports


def python(program: str, *arguments: str) -> list[str]:
    """Run a program in a new process, and return the lines of its output."""
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=900)
    return done.stdout.splitlines()


IMPORTED = """
import json, sys
from trainers.hegraph.__main__ import main
packages, *lines = json.loads(sys.argv[1])
for line in lines:
    try:
        code = main(line.split())
    except SystemExit as ended:
        code = ended.code
    print(code, *(name for name in packages if name in sys.modules))
"""


def codes_and_imports(packages: list[str], *lines: str) -> list[str]:
    """Exit code of each command line, and which packages are imported after it."""
    printed = python(IMPORTED, json.dumps([packages, *lines]))
    return [line for line in printed if re.fullmatch(r"\d( [a-zA-Z_][\w.]*)*", line)]


def test_help_and_refusals_need_no_torch():
    lines = (
        "--help", "--shots many", "prediction", "--trainer Tip", "--eval-only", "--host alone OPTIM.LRR 1",
        "--host alone --config-file mino",
    )  # fmt: skip
    assert codes_and_imports(SLOW, *lines) == ["0", *"2" * (len(lines) - 1)]


def test_first_step_needs_no_slow_imports(tiny_bank, tmp_path):
    late = {*SLOW, "torch_geometric"} - {"torch"}  # whose optimizer imports torch._dynamo
    program = (
        "import sys\n"
        "from trainers.hegraph.__main__ import main\n"
        "from trainers.hegraph.method.training.loop import AdapterTraining\n"
        "step = AdapterTraining.step\n"
        "def only(self, batch):\n"
        "    step(self, batch)\n"
        f"    print('imported', *(name for name in {late} if name in sys.modules))\n"
        "    raise KeyboardInterrupt\n"
        "AdapterTraining.step = only\n"
        "main(sys.argv[1:])\n"
    )
    arguments = ["--features", str(tiny_bank), "--shots", "1", "--output-dir", str(tmp_path / "out")]
    assert python(program, *arguments)[-1] == "imported"


@pytest.mark.parametrize(("line", "absent"), [
    ("import trainers.hegraph as h; h.__version__, dir(h)", {"trainers.hegraph.utils", "torch", "numpy", "yacs"}),
    ("from trainers.hegraph import UserError, load_cfg; load_cfg('digits', 'mini')", {"torch"}),
    ("import trainers.hegraph.experiments.run", {"open_clip", "torchvision"}),  # a bank needs no backbone
    ("import trainers.hegraph.features.backbones", {"open_clip", "torchvision", "torch"}),
])  # fmt: skip
def test_imports_are_lazy(line, absent):
    assert python(f"import sys\n{line}\nprint('imported', *({absent} & set(sys.modules)))") == ["imported"]


# The API


def test_public_names_are_documented():
    assert set(hegraph.__all__) == {*CONTRACT, "__version__"}
    assert set(hegraph.__all__) <= set(dir(hegraph))
    assert [part.isdecimal() for part in hegraph.__version__.split(".")] == [True] * 3
    for name, kind in CONTRACT.items():
        value = getattr(hegraph, name)
        assert isinstance(value, kind) and inspect.getdoc(value) and value.__name__ == name, name
        [line] = [line for line in hegraph.__doc__.splitlines() if line.startswith(f"    {name} ")]
        assert len(line.split()) >= 4
    assert issubclass(hegraph.HeGraphModel, torch.nn.Module) and issubclass(hegraph.UserError, ValueError)
    with pytest.raises(AttributeError, match=r"module 'trainers\.hegraph' has no attribute 'load_banks'"):
        _ = hegraph.load_banks


@pytest.mark.parametrize(("call", "message"), [
    (lambda: hegraph.load_cfg("digits", "mini", opts="SEED 1"), r"options, a list \[KEY, VALUE, .*got 'SEED 1'"),
    (lambda: hegraph.load_cfg("digits", "mini", ["SEED", 1]), r"flags, a dict .*got \['SEED', 1\]"),
    (lambda: hegraph.load_cfg(3), "unknown data set configuration '3'"),
    (lambda: hegraph.run({}), "cfg: .*got {}"), (lambda: hegraph.load_bank(None), "path: .*got None"),
    (lambda: hegraph.load_dataset(3), "name: .*got 3"),
    (lambda: hegraph.load_dataset("Caltech101", 3), "root: .*got 3"),
    (lambda: hegraph.load_few_shot("Digits", "", shots=1.5, seed=1), "shots: .*got 1.5"),
    (lambda: hegraph.load_few_shot("Digits", "", shots=1, seed="x"), "seed: .*got 'x'"),
    (lambda: hegraph.load_backbone(3), "name: .*got 3"),
    (lambda: hegraph.load_backbone("hegraph-mini", device="abacus"), "device must be .*got 'abacus'"),
    (lambda: hegraph.load_backbone("hegraph-mini").encode_images([1]), "image: .*got 1"),
    (lambda: hegraph.load_backbone("hegraph-mini").encode_images("a.jpg"), "images: .*got 'a.jpg'"),
    (lambda: hegraph.load_backbone("hegraph-mini").encode_images([], batch_size=0), "batch_size: .*got 0"),
    (lambda: hegraph.load_backbone("hegraph-mini").encode_text("a cat"), "sentences: .*got 'a cat'"),
    (lambda: hegraph.load_backbone("hegraph-mini", precision=None), "precision: .*got None"),
    (lambda: hegraph.compare_backbones([], [], candidates="mini"), "candidates: .*got 'mini'"),
    (lambda: hegraph.build_graph(*torch.full((3, 2, 4), torch.nan)), "must be finite"),
])  # fmt: skip
def test_arguments_of_another_type_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# The command line


def help_of(line: str, capsys) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*line.split(), "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_help_lists_the_commands(capsys):
    text = help_of("", capsys)
    for name, (_, summary) in SUBCOMMANDS.items():
        assert f"  {name:12}{summary}\n" in text


@pytest.mark.parametrize("name", ["", *SUBCOMMANDS])
def test_help_has_one_layout(name, capsys):
    program = "python -m trainers.hegraph"
    lines = [name]
    while lines:
        line = lines.pop()
        text = help_of(line, capsys)
        lines += [f"{line} {inner}" for inner in re.findall(r"(?m)^    (\w[\w-]*)(?=  |$)", commands_of(text))]
        usage, summary, arguments, *more, examples, codes = text.rstrip("\n").split("\n\n")
        assert usage.startswith(f"usage: {program} {line}".rstrip())
        if not name:  # the commands come first
            assert arguments.startswith("commands, each with its own --help:\n")
            arguments = more[0]
        assert re.fullmatch(r"[A-Z][^\n]*\.", summary), summary
        assert arguments.startswith(("positional arguments:\n", "options:\n"))
        assert re.fullmatch(rf"examples:(\n  {program} {line}.*)+".replace(" .*", ".*"), examples), examples
        assert len(examples.splitlines()) == 3
        assert re.fullmatch(r"exit codes:\n  0    success\n(  1    .*\n)?  2    .*\n  130  interrupted", codes)


def commands_of(text: str) -> str:
    return text.partition("\ncommands:\n  COMMAND\n")[2].partition("\n\n")[0]


def test_help_describes_every_argument(capsys):
    """Each argument has a help, and a metavar that is neither a key nor the name of its flag."""
    for name in ("", *SUBCOMMANDS):
        for flag, metavar in re.findall(r"(?m)^  (--[\w-]+) ([\w.]+)", help_of(name, capsys)):
            assert "." not in metavar.removesuffix(".json").removesuffix(".yaml"), flag
            assert metavar != flag.removeprefix("--").replace("-", "_").upper() or len(metavar) < 8, flag


def test_no_arguments_print_a_short_help(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    first = ["train", "predict", "teach", "serve", "export"]
    assert re.findall(r"(?m)^  ([a-z]+)  +[a-z]+ .* .* ", text)[:5] == first
    assert len(text.splitlines()) < 25 and all(name in text for name in SUBCOMMANDS)


def test_short_help_imports_no_large_package():
    assert codes_and_imports(LARGE, "") == ["0"]


def test_file_or_folder_as_command_names_train(refused, tmp_path):
    (tmp_path / "photos").mkdir()
    assert "photos is no command; to train on it: python -m trainers.hegraph train photos" in refused("photos")


def test_version_names_the_commit_where_it_is_known(capsys, monkeypatch):
    for commit, printed in (("0123abc", " (0123abc)"), ("unknown", ""), (None, "")):
        monkeypatch.setattr("trainers.hegraph.utils.commit.git_commit", lambda commit=commit: commit)
        assert main(["--version"]) == 0
        assert capsys.readouterr().out == f"HeGraphAdapter {hegraph.__version__}{printed}\n"


def test_training_ends_with_the_next_commands(tiny_bank, tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.chdir(tmp_path)
    with caplog.at_level("INFO"):
        assert main(["--features", str(tiny_bank), "--shots", "1", "--trainer", "ZeroShot", "--output-dir", "a b"]) == 0
    assert capsys.readouterr().out.count("\n") == 1
    assert caplog.messages[-2:] == [
        "classify images: python -m trainers.hegraph predict 'a b' IMAGES",
        "try the model in the browser: python -m trainers.hegraph demo 'a b'",
    ]
    assert find_model_folder(Path("a b")) and next_commands(tmp_path) == []


@pytest.mark.parametrize("name", ["datasets", "features", "label", "results"])
def test_missing_command_lists_the_choices(name, refused, capsys):
    names = re.findall(r"(?m)^    (\w[\w-]*)(?=  |$)", commands_of(help_of(name, capsys)))
    assert f"a command is missing: {', '.join(names)} (usage: " in refused(name)


def test_help_imports_no_large_package():
    commands = ["", *SUBCOMMANDS, "datasets check", "features extract", "label check", "results compare"]
    assert codes_and_imports(LARGE, *(f"{line} --help" for line in commands)) == ["0"] * len(commands)


def test_help_imports_nothing_of_the_encoders():
    packages = ["safetensors", "trainers.hegraph.features.backbones.identity", "trainers.hegraph.utils.files"]
    assert codes_and_imports(packages, "--help") == ["0"]


@pytest.mark.parametrize("flag", ["--target-domains", "--target-datasets", "--transforms"])
@pytest.mark.parametrize("keys", [["SEED", "2"], ["USE_CUDA", "False", "SEED", "2"], ["OPTIM.LR", "1", "SEED", "2"]])
def test_key_right_after_a_list_ends_the_list(flag, keys):
    args = parse_arguments([flag, "A", "B", *keys])
    assert (getattr(args, OPTION_OF_FLAG[flag]), args.opts) == (["A", "B"], keys)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_package_runs_as_the_command_line(capsys, monkeypatch):
    words = ["results", "compare", str(ROOT / "results" / "digits.jsonl")]
    assert main(words) == 0
    expected = capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["trainers.hegraph", *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("trainers.hegraph", run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out == expected != ""


# Refusals


@pytest.fixture
def refused(tmp_path, cli_error, monkeypatch):
    """Function of arguments that the command line refuses without a new file: returns the error."""
    monkeypatch.chdir(tmp_path)

    def refuse(*arguments: str) -> str:
        before, error = sorted(tmp_path.iterdir()), cli_error(*arguments)
        assert sorted(tmp_path.iterdir()) == before
        return error

    return refuse


@pytest.mark.parametrize(("line", "message"), [
    ("result", "unknown command 'result'; did you mean 'results'?"),
    ("--seed 1 results", "'results' follows flags; a command, a folder or a data set comes first: "),
    ("--root photos --config-file mini", "in photos: python -m trainers.hegraph train photos --config-file mini"),
    ("--config-file mini", "no data: name a folder of images or a data set, as in: python -m trainers.hegraph train "),
    ("xyz", "unknown command 'xyz' (known: "),
    ("OPTIM.LRR 1", "unknown configuration key 'OPTIM.LRR'"),
    ("--host alone optim.lr 1", "unknown configuration key 'optim.lr'"),
    ("SEEDS 1", "unknown configuration key 'SEEDS'"),
    ("OPTIM.LR 1 --seed 2", "--seed follows KEY VALUE pairs; put all flags before them"),
    ("--trainer HeGraphAdaptor", "unknown trainer 'HeGraphAdaptor'; did you mean 'HeGraphAdapter'"),
    ("--load-epoch 1", "--load-epoch needs --eval-only"),
    ("--eval-only --model-dir x --load-epoch 1 --trainer GDA", "--load-epoch needs --eval-only"),
    ("--eval-only", "--eval-only and --model-dir go together"),
    ("--no-train --eval-only --model-dir x", "--no-train encodes training images"),
    ("--trainer GDA --select val", "--select is an option of HeGraphAdapter, got --trainer GDA"),
    ("--trainer CLIPAdapter --eval-only --model-dir x", "CLIPAdapter saves no model"),
    *((f"{command} --no-such-flag", " --help)\n") for command in ("", *SUBCOMMANDS)),
])  # fmt: skip
def test_unknown_words_and_contradicting_flags(refused, line, message):
    assert message in refused(*line.split())


@pytest.mark.parametrize(("key", "value"), [
    ("OPTIM.MAX_EPOCH", "9" * 5000),
    (f"{NODE}.TRAINING_FREE.OMEGA", "[[1, 0x1" + "0" * 4000 + "]]"),
    ("INPUT.SIZE", "[" * 50_000), (f"{NODE}.PROMPTS.TEMPLATES", "['\\ud800 {}']"),
    (f"{NODE}.BY_DATASET", "[['x', ['OPTIM.LR', {1, 2}]]]"),
])  # fmt: skip
def test_extreme_values_are_refused_with_their_key(refused, key, value):
    assert key.removeprefix(f"{NODE}.") in refused(key, value)


@pytest.mark.parametrize("line", [
    f"--config-file {LONG}.yaml", f"--features {LONG}", "--root ~nosuchuser --dataset-config-file dtd",
    f"--root {LONG} --dataset-config-file folder", "--root \udcff --dataset-config-file folder",
    f"--eval-only --model-dir {LONG}", "--features pipe", "--config-file pipe", "results compare pipe",
    "features import-tip . --out new --classnames pipe", "describe --classes pipe --context photos --out o.json",
    "predict pipe image.png",
])  # fmt: skip
def test_impossible_paths_and_pipes_are_refused(refused, tmp_path, line):
    os.mkfifo(tmp_path / "pipe")
    refused(*line.split())


@pytest.mark.parametrize(("variables", "words"), [
    ({"WORLD_SIZE": "x"}, "WORLD_SIZE"), ({"WORLD_SIZE": "2"}, "RANK"),
    ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK must be from 0 to 1"),
    ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR"),
])  # fmt: skip
def test_invalid_variables_of_torchrun_are_refused(refused, tiny_bank, monkeypatch, variables, words):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    line = refused("--features", str(tiny_bank), "--no-train")
    assert "cannot join the processes of torchrun: " in line and words in line


@pytest.mark.parametrize(
    "line",
    ["--features b", "--features b --eval-only --model-dir m", "features import-tip d --classnames c --out b"]
    + [name for name in SUBCOMMANDS if name != "features"],
)
def test_several_processes_are_refused(refused, monkeypatch, line):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "expected one process, but torchrun started 2; start this with python" in refused(*line.split())


def test_one_class_is_refused(tiny_bank, finished_run, refused, tmp_path):
    load_bank(tiny_bank).of_classes(torch.tensor([0])).save(tmp_path / "one.safetensors")
    for words in ([], ["--trainer", "ZeroShot"], ["--eval-only", "--model-dir", str(finished_run)]):
        line = refused("--features", str(tmp_path / "one.safetensors"), *words, "--output-dir", str(tmp_path / "out"))
        assert "expected at least two classes, got 1" in line
