"""The pages for readers: their commands run, links lead somewhere, files and keys exist, tables are those of records.

A block of commands in a page is run by a test, or its first line says what it needs ("# needs ..."). The blocks of the
pages in `tools.outputs.PAGES` are run in order, and their outputs are compared. For the other pages, `RUN_BY` names the
test of each block. The steps of docs/development/extend.md are done in a copy of the checkout.
"""

import difflib
import json
import re
import shutil
import statistics
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest
from safetensors import safe_open
from standin.hosts import contents

import trainers.hegraph
from tools import backbones_page, intervals, outputs, tables
from tools.draws import read_draws
from tools.options_page import filled
from trainers.hegraph.baselines import ALL_BASELINES
from trainers.hegraph.config import default_values
from trainers.hegraph.config_files import load_cfg
from trainers.hegraph.datasets.registry import stored_datasets
from trainers.hegraph.results.records import find_records
from trainers.hegraph.results.scores import method as method_of

ROOT = Path(__file__).parent.parent
README, DOCS, MKDOCS = ROOT / "README.md", ROOT / "docs", ROOT / "mkdocs.yml"
CONFIGURATION = DOCS / "reference" / "configuration.md"
EXTEND = DOCS / "development" / "extend.md"
CHANGELOG = ROOT / "CHANGELOG.md"
PAGES = [README, *(ROOT / name / "README.md" for name in ("results", "benchmarks")), *sorted(DOCS.rglob("*.md"))]
FOR_DEVELOPERS = [CHANGELOG, *(ROOT / f"{name}.md" for name in ("CONTRIBUTING", "RELEASING", "SECURITY"))]
MAX_README_LINES = 150
MAX_WORDS = 32_000  # of the pages in docs/ that people write
BY_TOOLS = ("api", "command-line", "configuration", "http", "published-backbones", "record")
GENERATED = [DOCS / "reference" / f"{name}.md" for name in BY_TOOLS]
KEYS = default_values()
REAL_TEXT = ["caltech55", "imagenet283", "stanford_cars"]

# How a block of commands starts -> the test that runs it
RUN_BY = {
    "bash scripts/hegraph/main.sh # trains": "tests/test_scripts.py::test_main_script_ends_with_the_table",
    "python -m benchmarks": "tests/test_benchmarks.py::test_benchmark_runs_and_writes_its_figures",
}
PROGRAMS = ("bash", "python", "pip", "torchrun", "hegraph", "cd", "git", "export")


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    language: str
    text: str

    @property
    def start(self) -> str:
        return " ".join(self.text.split())


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# name in the nav of the site -> page; the notebook is a page
NAV = dict(re.findall(r"^ +- ([^:\n]+): ([\w/-]+\.md)$", text_of(MKDOCS).partition("\nnav:\n")[2], re.MULTILINE))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PROSE = {page: FENCE.sub("", text_of(page)) for page in PAGES}  # pages without their fenced blocks
BLOCKS = [Block(name_of(page), *found) for page in PAGES if page != EXTEND for found in FENCE.findall(text_of(page))]
COMMANDS = [block for block in BLOCKS if block.language == "bash"]
SNIPPETS = [block for block in BLOCKS if block.language == "python"]


# Commands


def test_commands_are_in_blocks_of_bash():
    # an indented or unmarked block would escape the tests below
    indented = re.compile(rf"^ {{4,}}(?:{'|'.join(PROGRAMS)}) .*$", re.MULTILINE)
    assert [line for prose in PROSE.values() for line in indented.findall(prose)] == []
    assert [block for block in BLOCKS if not block.language and block.start.startswith(PROGRAMS)] == []


def test_every_block_of_commands_has_a_test():
    of_scripts = text_of(ROOT / "tests" / "test_loops.py") + text_of(ROOT / "tests" / "test_scripts.py")
    in_order = {name_of(page) for page in outputs.PAGES}
    for block in COMMANDS:
        tests = [test for start, test in RUN_BY.items() if block.start.startswith(start)]
        needs = block.text.startswith("# needs ")
        runs = len(tests) + (block.page in in_order and not needs)
        assert needs + runs == 1, f"mark it '# needs ...', or have a test run it: {block}"
        for file, _, function in (test.partition("::") for test in tests):
            assert f"def {function}" in text_of(ROOT / file)
        for script in re.findall(r"bash scripts/hegraph/(\w+\.sh)", block.text):
            assert (ROOT / "scripts" / "hegraph" / script).is_file()
            assert needs or f'bash("{script}"' in of_scripts or script == "test.sh", script  # this is a run of test.sh
    assert [start for start in RUN_BY if not any(block.start.startswith(start) for block in COMMANDS)] == []


@pytest.fixture(scope="module")
def after_start(tmp_path_factory: pytest.TempPathFactory, python: Path) -> tuple[Path, str]:
    """A checkout in which docs/getting-started.md was followed, and the page with the outputs."""
    checkout = outputs.make_checkout(tmp_path_factory.mktemp("checkout").resolve(), python)
    return checkout, outputs.filled(text_of(outputs.START), checkout)


@pytest.mark.slow
@pytest.mark.parametrize("page", outputs.PAGES, ids=name_of)
def test_page_has_the_outputs_of_its_commands(page, after_start, tmp_path):
    checkout, new = after_start
    if page != outputs.START:
        new = outputs.filled(text_of(page), outputs.copy_checkout(checkout, tmp_path / "checkout"))
    differences = "\n".join(difflib.unified_diff(text_of(page).splitlines(), new.splitlines(), "page", "now", n=0))
    assert outputs.agree(text_of(page), new), f"run python -m tools.outputs {name_of(page)}:\n{differences}"


def test_outputs_agree_up_to_times_and_rounding():
    stored = "zero 99.20 % of 12 images in 3.1 s\n"
    assert outputs.agree(stored, "zero 98.90 %  of 12 images in 41 s\n")
    for other in (
        "one 99.20 % of 12 images in 3.1 s", "zero 91.20 % of 12 images in 3.1 s",
        "zero 99.20 % of 13 images in 3.1 s",
    ):  # fmt: skip
        assert not outputs.agree(stored, other)
    assert outputs.agree("score 0.92", "score 0.91") and not outputs.agree("score 0.92", "score 0.82")
    assert outputs.excerpt("a\nb\nc\nd\n", "2", "1") == "a\nb\n...\nd\n"


def test_snippets_use_public_names():
    names = {name for block in SNIPPETS for name in re.findall(r"(?<![.\w])(?<!from )hegraph\.(\w+)", block.text)}
    assert names and names <= set(trainers.hegraph.__all__)


# Links and names


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_to_files_and_anchors():
    for page in [*PAGES, *FOR_DEVELOPERS]:
        for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text_of(page))):
            file, _, anchor = target.partition("#")
            other = (page.parent / file).resolve() if file else page
            assert "://" in target or other.exists(), (page, target)
            assert "://" in target or not anchor or anchor in anchors_of(other), (page, target)


def test_nav_of_the_site_has_every_page():
    pages = [page.relative_to(DOCS).with_suffix(".md") for end in ("md", "ipynb") for page in DOCS.rglob(f"*.{end}")]
    assert (sorted(NAV.values()), len(NAV)) == (sorted(map(Path.as_posix, pages)), len(pages))


@pytest.mark.parametrize("page", [README, DOCS / "index.md"], ids=name_of)
def test_links_have_the_names_of_the_nav(page):
    """A link text in README or on the first page is a name of the nav, a path, or part of a sentence."""
    assert text_of(page).startswith("# HeGraphAdapter\n") and "\nsite_name: HeGraphAdapter\n" in text_of(MKDOCS)
    for name, target in re.findall(r"\[([A-Z][^]]*)\]\(([\w/-]+\.md)\)", PROSE[page]):
        if (linked := (page.parent / target).resolve()).is_relative_to(DOCS):
            assert NAV[name] == linked.relative_to(DOCS).as_posix()


def test_version_is_the_same_in_all_files():
    version = trainers.hegraph.__version__
    released = re.search(rf"^## {re.escape(version)} \((\d{{4}}-\d\d-\d\d)\)$", text_of(CHANGELOG), re.MULTILINE)
    assert released and f"\nversion: {version}\ndate-released: {released[1]}\n" in text_of(ROOT / "CITATION.cff")


def test_readme_is_short_and_links_the_main_pages():
    linked = re.findall(r"\]\(docs/(\w+)/[\w/-]+\.md\)", text_of(README))
    assert {"guides", "reference", "results", "development"} <= set(linked)
    assert len(text_of(README).splitlines()) <= MAX_README_LINES


def test_written_pages_are_short():
    pages = [page for page in DOCS.rglob("*.md") if page not in GENERATED]
    assert sum(len(text_of(page).split()) for page in pages) <= MAX_WORDS


def test_table_of_backbones_is_current():
    page = text_of(backbones_page.PAGE)
    assert backbones_page.filled(page) == page, "python -m tools.backbones_page writes it"


def test_files_that_pages_name_exist():
    folders = tuple(f"{entry.name}/" for entry in ROOT.iterdir() if entry.is_dir() and entry.name != "output")
    for page, prose in PROSE.items():
        text = re.sub(r"^`[^`]+` \(new\):$", "", prose, flags=re.MULTILINE)  # a file that the reader is to write
        named = {word for quoted in re.findall(r"`([^`\n]+)`", text) for word in quoted.split()}
        assert [name for name in named if name.startswith(folders) and not list(ROOT.glob(name))] == [], page
        assert [word for word in ("../shared", "/work/", "/home/") if word in text_of(page)] == [], page


def test_data_page_lists_the_registered_data_sets():
    row = re.compile(r"^\| `(\w+)\.yaml` \| `(\w+)` \| `([\w-]+)/`( \(test images only\))? \|$", re.MULTILINE)
    rows = row.findall(text_of(DOCS / "guides" / "data.md"))
    assert len(rows) == 15
    for file, name, folder, test_only in rows:
        entry = stored_datasets()[name]
        assert (load_cfg(file).data.name, entry.folder, entry.sizes.train == 0) == (name, folder, bool(test_only))


def test_architecture_page_lists_the_packages_in_order():
    linter = pytest.importorskip("importlinter.api", reason="import-linter is not installed")
    [layers, *_] = linter.read_configuration(str(ROOT / "pyproject.toml"))["contracts_options"]
    page = text_of(DOCS / "development" / "architecture.md")
    assert re.findall(r"^\| `(\w+)(?:/|\.py)` \|", page, re.MULTILINE)[::-1] == layers["layers"]


def test_configuration_keys_that_pages_name_exist():
    """A key is a word in capitals with a dot or an underscore, written in full or from any of its dots on."""
    endings = {".".join(key.split(".")[start:]) for key in KEYS for start in range(key.count(".") + 1)}
    sources = [*(ROOT / "scripts" / "hegraph").glob("*.sh"), *(ROOT / "trainers" / "hegraph").rglob("*.py")]
    # no keys: variables of the scripts, options of other methods, constants
    others = set(re.findall(r"\b[A-Z][A-Z0-9_]+\b", " ".join(map(text_of, sources))))
    others |= {*map(str.upper, ALL_BASELINES), "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "HEGRAPH_MUTATION"}
    for page, prose in PROSE.items():
        words = set(re.findall(r"`([A-Z][A-Z0-9_.]*[A-Z0-9])\b[^`\n]*`", prose)) - endings
        known = {word for word in words if set(word.removeprefix("TRAINER.").split(".")) <= others}
        assert [word for word in words - known if re.search(r"[._]", word)] == [], page


def test_configuration_page_matches_the_declarations():
    page = text_of(CONFIGURATION)
    assert filled(page) == page, "python -m tools.options_page writes them"
    for key in KEYS:
        assert len(re.findall(rf"^\| `{re.escape(key)}` \|", page, re.MULTILINE)) == 1, key


# Tables that are made from records


TABLES = [(page, *found) for page in tables.PAGES for found in tables.BLOCK.findall(text_of(page))]


@pytest.mark.parametrize(("page", "name", "files", "text"), TABLES, ids=[f"{p.stem}-{name}" for p, name, *_ in TABLES])
def test_table_is_made_from_the_records(page, name, files, text):
    assert text == tables.made(name, files), "run python -m tools.tables"


def test_every_table_appears_once_between_two_markers():
    names = [name for _, name, _, _ in TABLES]
    assert sorted(names) == sorted(tables.MAKERS)
    texts = "".join(map(text_of, tables.PAGES))
    opening, closing = re.findall(r"<!-- (\w+)[: ]", texts), re.findall(r"<!-- /(\w+) -->", texts)
    assert [name for name in opening if name in closing] == closing
    assert [name for name in closing if name in names] == names
    [numbers] = re.findall(r"# (\S+) (\S+), as in the table above", text_of(README))
    for name, number in zip(("zero-shot", "HeGraphAdapter"), numbers):
        [row] = re.findall(rf"^  {name}  .*$", text_of(README), re.MULTILINE)
        assert row.split()[3] == number  # of seed 1, behind name, mean and deviation


def means_by_method(table: str) -> dict[tuple[str, int], float]:
    """Means of a table by method and shots."""
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
    labels = rows[0].index("method") + 1
    means = {}
    for row in rows[2:]:
        method = ", ".join(row[:labels][::-1])
        scores = zip(rows[0][labels:], row[labels:])
        means |= {(method, int(shots)): float(score.strip("*")) for shots, score in scores if score.strip()}
    return means


def test_transductive_differences_agree_with_the_means_of_the_records():
    means = means_by_method(tables.mean_rows([ROOT / "results" / "unlabelled_real_text.jsonl"], protocols=True))
    pairs = intervals.read_intervals(ROOT / "results" / "paired_unlabelled_real_text.jsonl")
    assert pairs and {method for method, _ in pairs} <= {method for method, _ in means}
    for (method, shots), difference in pairs.items():
        expected = means["HeGraphAdapter, transductive", shots] - means[method, shots]
        assert difference.mean == pytest.approx(expected, abs=0.0151), (method, shots)  # all are rounded


UNLABELLED = " ".join(text_of(DOCS / "guides" / "unlabelled.md").split())


def test_unlabelled_guide_starts_from_the_recorded_accuracy():
    mean = means_by_method(tables.means_by_shots([ROOT / "results" / "digits.jsonl"]))["HeGraphAdapter", 1]
    assert f"accuracy at 1 shot is {mean:.2f} % without unlabelled scans" in UNLABELLED


def test_unlabelled_guide_gives_the_part_of_the_messages():
    gains: defaultdict[tuple[int, str], defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in text_of(ROOT / "results" / "unlabelled_conditions.jsonl").splitlines():
        row = json.loads(line)
        if row["condition"] == "whole test set":
            gains[row["shots"], row["part"]][row["bank"]].append(row["after"] - row["before"])
    means = {key: statistics.mean(map(statistics.mean, banks.values())) for key, banks in gains.items()}
    parts = [means[shots, "nodes alone"] / means[shots, "all"] for shots in (0, 1, 4, 16)]
    assert f"messages give {100 * min(parts):.0f} to {100 * max(parts):.0f} % of the gain" in UNLABELLED


def is_older_row(method: str, shots: int) -> bool:
    """Whether `draws.jsonl` lacks a row of the paired table of real text: see "Provenance" of results/README.md."""
    return method in ("CLIPAdapter", "ProtoCLIP") or (method == "GraphAdapter" and shots > 1)


@pytest.mark.parametrize(("name", "of", "datasets"), [
    ("real_text", "HeGraphAdapter", REAL_TEXT),
    ("training_free", "HeGraphAdapter(training-free)", REAL_TEXT),
    ("ucf101", "HeGraphAdapter(training-free)", ["ucf101"]),
    ("digits", "HeGraphAdapter", ["Digits"]),
])  # fmt: skip
def test_paired_differences_are_means_over_the_draws(name, of, datasets):
    draws = read_draws(ROOT / "results" / "draws.jsonl")
    pairs = intervals.read_intervals(ROOT / "results" / f"paired_{name}.jsonl")
    for (method, shots), difference in pairs.items():
        if name == "real_text" and is_older_row(method, shots):
            continue
        means = []
        for dataset in datasets:
            first = draws.get((dataset, of, shots), {})
            second = draws.get((dataset, method, shots), {})
            assert second.keys() <= first.keys() and len(second) in (0, 3, 20), (dataset, method, shots)
            if second:
                means.append(statistics.mean(first[seed] - accuracy for seed, accuracy in second.items()))
        assert difference.mean == pytest.approx(statistics.mean(means), abs=0.0101), (method, shots)  # rounded


@pytest.mark.parametrize(("name", "datasets"), [("real_text", REAL_TEXT), ("digits", ["Digits"])])
def test_draws_repeat_the_records(name, datasets):
    draws = read_draws(ROOT / "results" / "draws.jsonl")
    compared = 0
    for record in find_records([ROOT / "results" / f"{name}.jsonl"]):
        seeds = draws.get((record["dataset"], method_of(record), record["shots"]), {})
        if record["dataset"] in datasets and str(record["seed"]) in seeds:
            assert seeds[str(record["seed"])] == pytest.approx(record["accuracy"], abs=0.0051)
            compared += 1
    assert compared > 250


# extend.md


LEFT_OUT = shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__", "output", "data", "build", "dist")
WRITTEN = "docs/reference/configuration.md"  # by `tools.options_page`
OUTPUT = ("output/", "data/", WRITTEN)  # where the commands of the page write
STEP = re.compile(
    r"(?:^`([^`]+)` \((new|part|add below [^\n]+)\):\n\n)?^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE
)
SECTIONS = re.split(r"^## ", text_of(EXTEND), flags=re.MULTILINE)[1:]


def code_lines(text: str) -> str:
    """Return the lines of a text without indentation and empty lines."""
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())


class Edit(NamedTuple):
    """A block that goes to a file: below the only line that has `below` in it, or "" if the file is new.

    A block that is a part of the file already has `below` None.
    """

    path: str
    below: str | None
    text: str

    def put(self, checkout: Path) -> None:
        """Use a block of code as the page says."""
        file = checkout / self.path
        if self.below is None:
            assert code_lines(self.text) in code_lines(text_of(file)), f"{self.path} has no {self.text}"
            return
        if not self.below:
            assert not file.exists(), f"{self.path} is not new"
            file.write_text(self.text, encoding="utf-8")
            return
        lines = text_of(file).splitlines(keepends=True)
        [place] = [number for number, line in enumerate(lines) if self.below in line]
        lines.insert(place + 1, self.text)
        file.write_text("".join(lines), encoding="utf-8")


def record_below(folder: Path) -> dict:
    [path] = folder.rglob("result.json")
    return json.loads(path.read_text(encoding="utf-8"))


def check_data_set(checkout: Path, printed: str) -> None:
    assert "DigitScans, hegraph-mini" in printed
    [state] = [line for line in printed.splitlines() if line.startswith("DigitScans ")]
    assert state.split()[1] == "ready"
    record = record_below(checkout / "output" / "digit_scans")
    assert (record["dataset"], record["num_train"]) == ("DigitScans", 10)
    assert record["accuracy"] > 50  # of ten classes


def check_method(checkout: Path, printed: str) -> None:
    [_] = [line for line in printed.splitlines() if "| SimNL |" in line]
    by_default = record_below(checkout / "output" / "digits" / "SimNL")
    with_option = record_below(checkout / "output" / "simnl")
    assert with_option["config"]["TRAINER.SIMNL.LAMBDA"] == [["", 0.5]]
    assert by_default["accuracy"] != with_option["accuracy"]
    assert min(by_default["accuracy"], with_option["accuracy"]) > 50


def check_relation(checkout: Path, printed: str) -> None:
    [adapter] = (checkout / "output").rglob("adapter.safetensors")
    with safe_open(adapter, "pt") as file:
        assert [name for name in file.keys() if "negative_to_negative" in name]  # noqa: SIM118  # it is no dict
    record = record_below(checkout / "output" / "digits")
    assert record["config"]["TRAINER.HEGRAPHADAPTER.BETA_NN"] == 0.1
    assert record["accuracy"] > record["accuracy_zero_shot"]


def check_backbone(checkout: Path, printed: str) -> None:
    record = record_below(checkout / "output" / "digits" / "HeGraphAdapter" / "my_clip_1shots")
    assert record["backbone"] == "hegraph-mini/hegraph-mini" and record["accuracy"] > 50


def check_option(checkout: Path, printed: str) -> None:
    record = record_below(checkout / "output" / "digits")
    assert record["config"]["TRAINER.HEGRAPHADAPTER.METAPATH_SCALE"] == 0.5
    assert "| `TRAINER.HEGRAPHADAPTER.METAPATH_SCALE` | `1.0` (from 0) |" in text_of(checkout / WRITTEN)


CHECKS = {
    "A data set": check_data_set, "A method": check_method, "A relation": check_relation, "An option": check_option,
    "A backbone": check_backbone,
}  # fmt: skip


def test_every_section_of_the_page_has_a_check():
    assert [section.splitlines()[0] for section in SECTIONS] == list(CHECKS)


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS, ids=list(CHECKS))
def test_section_is_complete(section, tmp_path, python):
    edits, commands = [], []
    for path, how, language, text in STEP.findall(section):
        if path:
            edits.append(Edit(path, None if how == "part" else how.partition("`")[2].rstrip("`"), text))
        elif language == "bash" and not text.startswith("# needs "):
            commands.append(text)
    assert edits and commands
    files = {edit.path for edit in edits}
    assert len(files) == int(re.search(r"\*\*(\d) files?\*\*", section)[1])

    checkout = Path(shutil.copytree(ROOT, tmp_path.resolve() / "checkout", ignore=LEFT_OUT))
    outputs.add_programs(checkout, python)
    before = contents(checkout)
    for edit in edits:
        edit.put(checkout)
    with outputs.interpreter(checkout) as run:
        printed = run("bash", "trap 'exit 2' ERR\n" + "".join(commands))
    CHECKS[section.splitlines()[0]](checkout, printed)
    after = contents(checkout)
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    written = {edit.path for edit in edits if edit.below is not None}
    assert {name for name in changed if not name.startswith(OUTPUT) and "_cache/" not in name} == written
