"""The command against an endpoint that misbehaves: what it writes, what it asks again, what it never asks twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_endpoint import KEY, KEY_VARIABLE, but, completion, fails, good, good_sentence, hangs_up, says, send

from trainers.hegraph.describe.__main__ import main
from trainers.hegraph.describe.client import ChatClient
from trainers.hegraph.prompts.sentences import read_descriptions

NAMES = ["river", "forest", "annual crop", "pasture", "highway", "lake"]
DONE = ["classes.txt", "out.json", "out.models.json"]
OWN = [good_sentence("lake", 5000 + i) for i in range(7)]


@pytest.fixture
def arguments(endpoint, tmp_path) -> Callable[..., list[str]]:
    """The command line for six classes, two to a question; further arguments win."""
    (tmp_path / "classes.txt").write_text("\n".join(NAMES), encoding="utf-8")

    def build(*more: str) -> list[str]:
        files = ["--classes", str(tmp_path / "classes.txt"), "--out", str(tmp_path / "out.json")]
        options = ["--context", "satellite photos", "--endpoint", endpoint.url, "--key-env", KEY_VARIABLE]
        return [*files, *options, "--model", "m", "--batch-size", "2", *more]

    return build


@pytest.fixture
def describe(arguments, tmp_path, capfd, caplog) -> Callable[..., tuple[int, str]]:
    """Runs the command; returns its exit code and all it says. The key is in no output, log or file."""

    def run(*more: str) -> tuple[int, str]:
        code = main(arguments(*more))
        out, error = capfd.readouterr()
        assert KEY not in out + error + caplog.text
        assert [file for file in tmp_path.rglob("*") if file.is_file() and KEY.encode() in file.read_bytes()] == []
        return code, out + error + caplog.text

    return run


def table(tmp_path: Path, name: str = "out.json") -> dict[str, list[str]]:
    return json.loads((tmp_path / name).read_text(encoding="utf-8"))


def names_of(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in tmp_path.iterdir())


# What comes out


def test_a_description_file_in_class_order_comes_out(describe, endpoint, tmp_path):
    sentences = ["Too short a river.", *(good_sentence("river", 5000 + i) for i in range(9))]
    endpoint.replies = [but(river=sentences)]
    code, said = describe()
    assert code == 0
    assert "6 of 6 classes" in said
    assert list(table(tmp_path)) == NAMES
    assert [len(sentences) for sentences in table(tmp_path).values()] == [5] * 6
    assert table(tmp_path)["river"] == sentences[1:6]  # of more than are wanted, the first good ones
    assert read_descriptions(tmp_path / "out.json", NAMES) == list(table(tmp_path).values())
    assert endpoint.batches == [NAMES[0:2], NAMES[2:4], NAMES[4:6]]
    assert {request["model"] for request in endpoint.requests} == {"m"}
    assert names_of(tmp_path) == DONE


def test_classes_may_be_a_json_list_and_a_name_may_occur_twice(describe, endpoint, tmp_path):
    (tmp_path / "list.txt").write_text(json.dumps(["Sea_Lake", "river", "Sea_Lake"]))
    assert describe("--classes", str(tmp_path / "list.txt"), "--per-class", "2")[0] == 0
    assert {name: len(sentences) for name, sentences in table(tmp_path).items()} == {"Sea_Lake": 2, "river": 2}
    assert endpoint.batches == [["Sea Lake", "river"]]


def test_an_alias_may_stand_for_a_name(describe, endpoint, tmp_path):
    (tmp_path / "aliases.json").write_text(json.dumps({"annual crop": ["field", "crop"]}))
    fields = [good_sentence("field", 5000 + i) for i in range(5)]
    endpoint.replies = [good, but(**{"annual crop": fields})]
    assert describe("--aliases", str(tmp_path / "aliases.json"))[0] == 0
    assert table(tmp_path)["annual crop"] == fields
    assert "- annual crop (a sentence may also call it field, or crop)\n" in endpoint.prompts[1]


def test_a_dry_run_shows_the_question_and_asks_and_writes_nothing(describe, endpoint, tmp_path, monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE)
    code, said = describe("--dry-run")
    assert code == 0
    assert "The pictures: satellite photos\n" in said
    assert said.endswith("- river\n- forest\n\nrequests: 3, classes: 6; nothing was asked\n")
    assert endpoint.prompts == []
    assert names_of(tmp_path) == ["classes.txt"]


# An endpoint that misbehaves


@pytest.mark.parametrize("reply", [fails(429, retry_after="0.1"), hangs_up], ids=["429", "hang-up"])
def test_a_failing_question_is_asked_again_and_no_other(describe, endpoint, tmp_path, reply):
    endpoint.replies = [good, reply]
    assert describe()[0] == 0
    assert endpoint.batches == [NAMES[0:2], NAMES[2:4], NAMES[2:4], NAMES[4:6]]
    assert endpoint.prompts[1] == endpoint.prompts[2]
    assert list(table(tmp_path)) == NAMES


def test_what_cannot_be_read_is_left_out_or_is_too_little_is_asked_for_again_in_smaller_questions(
    describe, endpoint, tmp_path
):
    endpoint.replies = [says("I cannot do that."), but(pasture=None), but(lake=[good_sentence("lake", 5000)])]
    assert describe()[0] == 0
    again = [["river"], ["forest"], ["pasture"], ["lake"]]
    assert endpoint.batches == [NAMES[0:2], NAMES[2:4], NAMES[4:6], *again]
    assert "was refused: the answer is not of the form " in endpoint.prompts[3]
    assert "was refused: the answer leaves this class out\n" in endpoint.prompts[5]
    assert "was refused: the answer holds 1 sentences where 5 are wanted\n" in endpoint.prompts[6]
    assert list(table(tmp_path)) == NAMES


def test_good_sentences_are_kept_and_what_is_missing_is_asked_for_with_what_was_wrong(describe, endpoint, tmp_path):
    kept = [good_sentence("forest", 5000 + i) for i in range(3)]
    endpoint.replies = [but(forest=[*kept, "A short forest.", good_sentence("wood", 5077)])]
    assert describe()[0] == 0
    assert endpoint.asked["forest"] == 2
    question = endpoint.prompts[3].partition("classes to describe:")[2]
    assert question.startswith("\n- forest: 2 more, unlike the ones there:\n")
    assert [line for line in question.splitlines() if "has:" in line] == [f"  has: {sentence}" for sentence in kept]
    assert "was refused: 3 words where 8 to 35 are wanted: 'A short forest.'\n" in question
    assert "was refused: it does not name its class: " in question
    assert table(tmp_path)["forest"][:3] == kept
    assert len(table(tmp_path)["forest"]) == 5


def never(name: str) -> Callable:
    """A reply that has something to say of every class but one."""

    def reply(handler, names, prompt):
        table = {asked: handler.server.endpoint.sentences(asked, 5) for asked in names if asked != name}
        send(handler, 200, completion(json.dumps(table | {name: ["I do not know."]} if name in names else table)))

    return reply


def test_classes_that_fail_are_listed_and_the_others_written_and_only_they_are_asked_the_next_time(
    describe, endpoint, tmp_path
):
    endpoint.replies = [never("pasture")] * 6
    code, said = describe()
    assert code == 1
    assert endpoint.asked == Counter({name: 4 if name == "pasture" else 1 for name in NAMES})
    assert "5 of 6 classes" in said
    assert "  pasture: 4 words where 8 to 35" in said.partition("failed, and tried again by the same command (1):")[2]
    before = table(tmp_path)
    assert list(before) == [name for name in NAMES if name != "pasture"]
    assert describe()[0] == 0
    assert endpoint.batches[6:] == [["pasture"]]
    assert list(table(tmp_path)) == NAMES
    assert {name: table(tmp_path)[name] for name in before} == before
    assert names_of(tmp_path) == DONE


def test_if_every_class_fails_there_is_no_file(describe, endpoint, tmp_path):
    endpoint.replies = [says("No.")] * 99
    code, said = describe("--tries", "1")
    assert code == 1
    assert all(f"  {name}: the answer is not of the form" in said for name in NAMES)
    assert names_of(tmp_path) == ["classes.txt", "out.json.partial"]


def test_a_failure_that_will_not_pass_keeps_what_came_before(describe, endpoint, tmp_path):
    endpoint.replies = [good, fails(401, f"wrong key {KEY}")]
    code, said = describe()
    assert code == 2
    assert "status 401: wrong key [key]; what was answered is kept in " in said
    assert describe()[0] == 0
    assert endpoint.batches == [NAMES[0:2], NAMES[2:4], NAMES[2:4], NAMES[4:6]]


# Which model


def test_a_change_of_model_is_said_and_recorded(describe, endpoint, tmp_path):
    endpoint.replies = [but(forest=[good_sentence("forest", 5000)]), fails(401)]
    assert "will be of" not in describe()[1]
    code, said = describe("--model", "other")
    assert code == 0
    assert "of 'm' are the sentences of 2 classes; the others will be of 'other'" in said
    expected = {name: ["other"] for name in NAMES} | {"river": ["m"], "forest": ["m", "other"]}
    assert table(tmp_path, "out.models.json") == expected
    assert "will be of 'third'" not in describe("--model", "third")[1]  # it asks nothing
    assert table(tmp_path, "out.models.json") == expected


def test_what_the_user_wrote_stays_is_not_asked_for_and_is_of_no_model(describe, endpoint, tmp_path):
    (tmp_path / "out.json").write_text(json.dumps({"lake": OWN}))
    assert describe()[0] == 0
    assert endpoint.asked == Counter(NAMES[:5])
    assert table(tmp_path)["lake"] == OWN
    assert list(table(tmp_path)) == NAMES
    assert table(tmp_path, "out.models.json") == {name: ["m"] for name in NAMES[:5]}


# Killed and resumed


def test_after_an_end_nothing_that_was_answered_is_asked_again(describe, endpoint, tmp_path, monkeypatch):
    real = ChatClient.ask

    def ends(self: ChatClient, prompt: str) -> str:
        if len(endpoint.prompts) == 2:
            raise KeyboardInterrupt
        return real(self, prompt)

    endpoint.replies = [good, never("annual crop")]
    with monkeypatch.context() as patch:
        patch.setattr(ChatClient, "ask", ends)
        assert describe()[0] == 130
    assert names_of(tmp_path) == ["classes.txt", "out.json.partial"]
    kept = json.loads((tmp_path / "out.json.partial").read_text())["classes"]

    assert "requests: 2, classes: 3; nothing was asked\n" in describe("--dry-run")[1]
    assert describe()[0] == 0
    # the third question had no answer; of the second, one class had none
    assert endpoint.batches[2:] == [NAMES[4:6], ["annual crop"]]
    assert "was refused: 4 words" in endpoint.prompts[3]
    assert list(table(tmp_path)) == NAMES
    assert all(table(tmp_path)[name] == kept[name]["sentences"] for name in ("river", "forest", "pasture"))
    assert names_of(tmp_path) == DONE


def test_a_kill_after_the_file_was_written_asks_nothing(describe, endpoint, tmp_path):
    describe()
    written = (tmp_path / "out.json").read_bytes()
    partial = {"context": "satellite photos", "classes": {"river": {"sentences": table(tmp_path)["river"]}}}
    (tmp_path / "out.json.partial").write_text(json.dumps(partial))
    assert describe()[0] == 0
    assert len(endpoint.prompts) == 3
    assert (tmp_path / "out.json").read_bytes() == written
    assert names_of(tmp_path) == DONE


def test_a_run_that_was_answered_nothing_binds_nobody(describe, endpoint, tmp_path):
    endpoint.replies = [fails(401)]
    assert describe("--context", "pets")[0] == 2
    assert describe()[0] == 0
    assert names_of(tmp_path) == DONE


# Mistakes


def test_a_full_disk_is_one_line_and_what_was_kept_stays(describe, endpoint, tmp_path, disk_full_after):
    endpoint.replies = [good, fails(401)]
    describe()
    kept = (tmp_path / "out.json.partial").read_bytes()
    with disk_full_after(1000):
        code, said = describe()
    assert code == 2
    assert "cannot write" in said
    assert (tmp_path / "out.json.partial").read_bytes() == kept


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("out.json", "precious", "JSON"),
        ("out.json", '{"river": "One."}', "is not what this command writes"),
        ("out.json", '{"mountain": []}', "'mountain', which is not in --classes"),
        ("out.json", '{"river": ["A short river."]}', "of 'river' it holds something wrong: 3 words where 8 to 35"),
        ("out.json", '{"river": []}', "of 'river' it holds something wrong: 0 sentences where 5"),
        ("out.models.json", '{"lake": 3}', "is not what this command writes"),
        ("out.json.partial", '{"context": "a", "classes": {"river": {"what": 1}}}', "is not what this command writes"),
        ("out.json.partial", '{"context": "a", "classes": {"hill": {}}}', "'hill', which is not in --classes"),
        ("out.json.partial", '{"context": "pets", "classes": {"river": {"tries": 1}}}', "--context 'pets'"),
        ("classes.txt", "river\nRiver", "'river' and 'River' are the same"),
        ("classes.txt", "river\n--", "'--' holds no letter"),
        ("aliases.json", "[]", "--aliases must hold"),
        ("aliases.json", '{"hill": ["mound"]}', "'hill' has aliases"),
    ],
)
def test_a_file_that_is_something_else_is_named_and_left_alone(describe, endpoint, tmp_path, file, content, words):
    (tmp_path / "aliases.json").write_text("{}")
    if file == "out.models.json":
        (tmp_path / "out.json").write_text(json.dumps({"lake": OWN}))
    (tmp_path / file).write_text(content)
    code, said = describe("--aliases", str(tmp_path / "aliases.json"))
    assert code == 2 and words in said
    assert file in ("classes.txt", "aliases.json") or str(tmp_path / file) in said
    assert (tmp_path / file).read_text() == content
    assert endpoint.prompts == []


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--per-class", "0", "at least 1"),
        ("--retries", "-1", "at least 0"),
        ("--timeout", "nan", "from 0.001"),
        ("--temperature", "2.1", "from 0 to 2"),
        ("--tries", "many", "many"),
        ("--context", " ", "--context is empty"),
        ("--endpoint", "nowhere", "--endpoint"),
        ("--key-env", "NO_SUCH_VARIABLE", "NO_SUCH_VARIABLE"),
        ("--aliases", "/nowhere/aliases.json", "/nowhere/aliases.json"),
        ("--out", "/dev/null/out.json", "cannot write /dev/null/out.json"),
        ("--out", "classes.txt", "is read by this command"),
    ],
)
def test_a_bad_option_is_refused_before_anything_is_asked(describe, endpoint, tmp_path, option, value, words):
    code, said = describe(option, str(tmp_path / value) if value == "classes.txt" else value)
    assert code == 2 and words in said
    assert names_of(tmp_path) == ["classes.txt"] and (tmp_path / "classes.txt").read_text() == "\n".join(NAMES)
    assert endpoint.prompts == []
