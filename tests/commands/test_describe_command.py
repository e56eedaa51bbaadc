"""The command `describe` and its client against a fake endpoint: requests, files, failures and the API key."""

import json
import logging
import os
import re
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from trainers.hegraph.commands.describe import ChatClient, main, parse_arguments, read_key
from trainers.hegraph.features.prompts.sentences import read_descriptions
from trainers.hegraph.utils.errors import UserError

KEY = "sk-do-not-tell-0123456789abcdef"
KEY_VARIABLE = "FAKE_ENDPOINT_KEY"
URL = "http://endpoint:8000/v1"
NAMES = ["river", "forest", "annual crop", "pasture", "highway", "lake"]
DONE = ["classes.txt", "out.json", "out.models.json"]
OWN = ["A lake."]  # breaks the rules


def good_sentence(name: str, number: int) -> str:
    """Write a sentence that follows all rules and has a unique opening."""
    return f"Row {number} of crooked stones runs along the {name} on a bright day."


class FakeEndpoint:
    """Chat endpoint that answers each request with the next of its `replies`, and then with good descriptions.

    A reply is a function from the endpoint and the request to a response of the library `http`.

    Attributes:
        prompts: Message of each request.
        batches: Classes that each prompt requests.
        requests, headers: Body, and headers in lower case, of each request.
    """

    number = 0  # of the last good sentence

    def __init__(self, http: Any) -> None:
        self.http = http
        self.replies: list[Callable] = []
        self.prompts: list[str] = []
        self.batches: list[list[str]] = []
        self.requests: list[dict] = []
        self.headers: list[dict[str, str]] = []

    def answer(self, request: Any) -> Any:
        self.requests.append(json.loads(request.content))
        self.headers.append(dict(request.headers))
        self.prompts.append(self.requests[-1]["messages"][-1]["content"])
        requested = self.prompts[-1].partition("classes to describe:")[2]
        self.batches.append(re.findall(r"^- (.+?)(?: \(a sentence.*\))?(?::.*)?$", requested, re.M))
        return (self.replies.pop(0) if self.replies else descriptions())(self, request)

    def sentences(self, name: str, count: int) -> list[str]:
        self.number += count
        return [good_sentence(name, self.number - i) for i in range(count)]


def raw(body: str, status: int = 200, kind: str = "application/json") -> Callable:
    """Create a reply with any body."""
    return lambda endpoint, request: endpoint.http.Response(status, text=body, headers={"content-type": kind})


def completion(text: str | None, finish_reason: str = "stop") -> Callable:
    """Create a reply with a chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    return raw(json.dumps({"id": "1", "object": "chat.completion", "choices": [choice]}))


def error_status(status: int, message: str = "no luck") -> Callable:
    """Create a reply with an error status."""
    return raw(json.dumps({"error": {"message": message}}), status)


def connection_error(name: str) -> Callable:
    """Create a reply that raises an error of the library, such as "ReadTimeout"."""

    def reply(endpoint: FakeEndpoint, request: Any) -> None:
        raise getattr(endpoint.http, name)("Connection refused", request=request)

    return reply


def descriptions(**sentences: Sequence[str] | None) -> Callable:
    """Create a reply with the requested number of good sentences for each class.

    Some classes have other sentences, or with None no entry.
    """

    def reply(endpoint: FakeEndpoint, request: Any) -> Any:
        names, prompt = endpoint.batches[-1], endpoint.prompts[-1]
        each = re.search(r"at the end of this message, (\d+) for each", prompt)[1]
        counts = dict.fromkeys(names, each) | dict(re.findall(r"^- (.+?)(?: \(.*\))?: (\d+) more", prompt, re.M))
        good = {name: endpoint.sentences(name, int(counts[name])) for name in names}
        table = {name: sentences.get(name.replace(" ", "_"), good[name]) for name in names}
        return completion(json.dumps({name: found for name, found in table.items() if found is not None}))(
            endpoint, request
        )

    return reply


@pytest.fixture
def endpoint(monkeypatch, caplog) -> FakeEndpoint:
    """Fake endpoint whose key is in the environment, with short delays before retries.

    All messages are logged, so that tests find the key in messages of any library.
    """
    openai = pytest.importorskip("openai", reason="the extra `describe` is not installed: pip install openai")
    http = getattr(openai._base_client, "httpx2", None) or openai._base_client.httpx  # by its version
    endpoint = FakeEndpoint(http)
    client = http.Client(transport=http.MockTransport(endpoint.answer))
    monkeypatch.setattr(openai, "OpenAI", partial(openai.OpenAI, http_client=client))
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.01)
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    caplog.set_level(logging.DEBUG)
    return endpoint


@pytest.fixture
def describe(endpoint, tmp_path, capfd, caplog) -> Callable[..., tuple[int, str]]:
    """Function that runs the command for six classes, two per prompt; further arguments take precedence.

    Returns the exit code and everything printed. The key must not be in an output, log or file.
    """
    (tmp_path / "classes.txt").write_text("\n".join(NAMES), encoding="utf-8")

    def run(*more: str) -> tuple[int, str]:
        files = ["--classes", str(tmp_path / "classes.txt"), "--out", str(tmp_path / "out.json")]
        options = ["--context", "satellite photos", "--endpoint", URL, "--key-env", KEY_VARIABLE]
        code = main([*files, *options, "--model", "m", "--batch-size", "2", *more])
        out, error = capfd.readouterr()
        assert KEY not in out + error + caplog.text
        assert [file for file in tmp_path.rglob("*") if file.is_file() and KEY.encode() in file.read_bytes()] == []
        return code, out + error + caplog.text

    return run


def table(tmp_path: Path, name: str = "out.json") -> dict[str, list[str]]:
    return json.loads((tmp_path / name).read_text(encoding="utf-8"))


def names_of(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in tmp_path.iterdir())


def test_description_file_has_class_order(describe, endpoint, tmp_path):
    sentences = ["Too short a river.", *(good_sentence("river", 5000 + i) for i in range(9))]
    endpoint.replies = [descriptions(river=sentences)]
    code, printed = describe()
    assert code == 0 and "6 of 6 classes" in printed and list(table(tmp_path)) == NAMES
    assert [len(sentences) for sentences in table(tmp_path).values()] == [5] * 6
    assert table(tmp_path)["river"] == sentences[1:6]  # the first good ones
    assert read_descriptions(tmp_path / "out.json", NAMES) == list(table(tmp_path).values())
    assert endpoint.batches == [NAMES[0:2], NAMES[2:4], NAMES[4:6]]
    assert ({request["model"] for request in endpoint.requests}, names_of(tmp_path)) == ({"m"}, DONE)
    describe()
    assert len(endpoint.prompts) == 3  # the second call sends none


def test_duplicate_names_and_aliases(describe, endpoint, tmp_path):
    (tmp_path / "list.txt").write_text(json.dumps(["Sea_Lake", "river", "Sea_Lake"]))
    (tmp_path / "aliases.json").write_text(json.dumps({"river": ["field", "crop"]}))
    fields = [good_sentence("field", 5000 + i) for i in range(2)]
    endpoint.replies = [descriptions(river=fields)]
    flags = ["--classes", str(tmp_path / "list.txt"), "--aliases", str(tmp_path / "aliases.json"), "--per-class", "2"]
    assert (describe(*flags)[0], [*table(tmp_path)], table(tmp_path)["river"]) == (0, ["Sea_Lake", "river"], fields)
    assert endpoint.prompts[0].endswith("- Sea Lake\n- river (a sentence may also call it field, or crop)\n")


def test_change_of_model_is_recorded(describe, endpoint, tmp_path):
    (tmp_path / "out.json").write_text(json.dumps({"lake": OWN, "river": []}))
    endpoint.replies = [descriptions(forest=[good_sentence("forest", 5000)]), error_status(401)]
    code, messages = describe()
    assert (code, "writes the rest" in messages) == (2, False)
    endpoint.replies = [descriptions(forest=[good_sentence("forest", 5000)])]  # equal to the first
    code, messages = describe("--model", "other")
    assert (code, endpoint.batches) == (0, [NAMES[0:2], NAMES[2:4], NAMES[1:3], NAMES[3:5], ["forest"]])
    assert "was refused: equal to a sentence of 'forest' except for names" in endpoint.prompts[-1]
    assert "m wrote sentences of 2 classes, other writes the rest" in messages
    expected = {name: ["other"] for name in NAMES[:5]} | {"river": ["m"], "forest": ["m", "other"]}
    assert table(tmp_path, "out.models.json") == expected
    assert (list(table(tmp_path)), table(tmp_path)["lake"]) == (NAMES, OWN)
    assert "third writes the rest" not in describe("--model", "third")[1]  # sends nothing


def test_dry_run_sends_and_writes_nothing(describe, endpoint, tmp_path, monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE)
    code, printed = describe("--dry-run", "--context", "a {0}  {context}")
    assert code == 0
    for words in ("pictures: a {0} {context}\n", f"classes: {'; '.join(NAMES)}\n", "5 for each", "8 to 35"):
        assert words in printed
    assert printed.endswith("- river\n- forest\n\nrequests: 3, classes: 6; nothing was sent\n")
    assert (endpoint.prompts, names_of(tmp_path)) == ([], ["classes.txt"])


def test_incomplete_answers_are_requested_again(describe, endpoint, tmp_path):
    endpoint.replies = [
        completion("I cannot do that."),
        descriptions(pasture=None),
        descriptions(lake=[good_sentence("lake", 5000)]),
    ]
    assert describe()[0] == 0
    again = [["river"], ["forest"], ["pasture"], ["lake"]]
    assert endpoint.batches == [NAMES[0:2], NAMES[2:4], NAMES[4:6], *again]
    assert "was refused: the answer is not of the form " in endpoint.prompts[3]
    for prompt in endpoint.prompts[5:]:
        assert "was refused: the answer has too few sentences about this class" in prompt
    assert list(table(tmp_path)) == NAMES


def test_next_prompt_has_good_sentences_and_problems(describe, endpoint, tmp_path):
    good = [good_sentence("forest", 5000 + i) for i in range(3)]
    endpoint.replies = [descriptions(forest=[*good, "A short forest.", good_sentence("wood", 5077)])]
    assert describe()[0] == 0
    assert [batch for batch in endpoint.batches if "forest" in batch] == [NAMES[0:2], ["forest"]]
    prompt = endpoint.prompts[3].partition("classes to describe:")[2]
    assert prompt.startswith("\n- forest: 2 more, unlike the ones there:\n")
    assert [line for line in prompt.splitlines() if "has:" in line] == [f"  has: {sentence}" for sentence in good]
    assert "was refused: expected 8 to 35 words, got 3: 'A short forest.'\n" in prompt
    assert "was refused: the class name is missing: " in prompt
    assert (table(tmp_path)["forest"][:3], len(table(tmp_path)["forest"])) == (good, 5)


def test_failed_classes_are_listed_and_requested_next_time(describe, endpoint, tmp_path):
    endpoint.replies = [descriptions(pasture=["I do not know."])] * 6
    code, printed = describe()
    assert code == 1 and "5 of 6 classes" in printed
    assert sum("pasture" in batch for batch in endpoint.batches) == 4
    assert printed.count("failed, run the same command to retry: ") == 1
    assert "to retry: pasture: expected 8 to 35 words, got 4" in printed
    before = table(tmp_path)
    assert (list(before), describe()[0]) == ([name for name in NAMES if name != "pasture"], 0)
    assert (endpoint.batches[6:], list(table(tmp_path))) == ([["pasture"]], NAMES)
    assert (table(tmp_path) | before, names_of(tmp_path)) == (table(tmp_path), DONE)


def test_interrupted_command_continues(describe, endpoint, tmp_path, monkeypatch):
    real = ChatClient.ask

    def ends(self: ChatClient, prompt: str) -> str:
        if len(endpoint.prompts) == 2:
            raise KeyboardInterrupt
        return real(self, prompt)

    endpoint.replies = [descriptions(), descriptions(annual_crop=["I do not know."])]
    with monkeypatch.context() as patch:
        patch.setattr(ChatClient, "ask", ends)
        assert describe()[0] == 130
    assert names_of(tmp_path) == ["classes.txt", "out.json.partial"]
    partial_file = json.loads((tmp_path / "out.json.partial").read_text())
    again = [["annual crop", "highway"], ["lake"]]
    assert "requests: 2, classes: 3; nothing was sent\n" in describe("--dry-run")[1]
    endpoint.replies = [error_status(401, f"wrong key {KEY}")]
    code, printed = describe()
    assert code == 2 and "wrong key [key]" in printed and describe()[0] == 0
    # The third prompt had no answer, and one class of the second prompt had none
    assert endpoint.batches[2:] == [again[0], *again]
    assert "was refused: expected 8 to 35 words, got 4" in endpoint.prompts[3]
    assert list(table(tmp_path)) == NAMES
    assert all(
        table(tmp_path)[name] == partial_file["classes"][name]["sentences"] for name in ("river", "forest", "pasture")
    )
    assert names_of(tmp_path) == DONE


# Invalid input


@pytest.mark.parametrize(("file", "content", "words"), [
    ("out.json", "precious", "JSON"),
    ("out.json", '{"river": "One."}', "was not written by this command"),
    ("out.json", '{"mountain": []}', "'mountain', which is not in --classes"),
    ("out.json.partial", '{"context": "a", "classes": {"river": 1}}', "was not written by this command"),
    ("out.json.partial", '{"context": "pets", "classes": {"river": {"problems": ["x"]}}}', "--context 'pets'"),
    ("classes.txt", "river\nRiver", "'River' means both 'river' and 'River'"),
    ("aliases.json", "[]", "must hold"),
    ("aliases.json", '{"hill": ["mound"]}', "'hill' has aliases"),
])  # fmt: skip
def test_foreign_files_are_refused(describe, endpoint, tmp_path, file, content, words):
    (tmp_path / "aliases.json").write_text("{}")
    (tmp_path / file).write_text(content)
    code, printed = describe("--aliases", str(tmp_path / "aliases.json"))
    assert code == 2 and words in printed
    assert "out.json" not in file or str(tmp_path / file) in printed
    assert ((tmp_path / file).read_text(), endpoint.prompts) == (content, [])


@pytest.mark.parametrize(("option", "value", "words"), [
    ("--per-class", "0", "at least 1"), ("--timeout", "nan", "from 0.001"), ("--temperature", "2.1", "from 0 to 2"),
    ("--tries", "many", "many"), ("--context", " ", "--context is empty"), ("--endpoint", "nowhere", "--endpoint"),
    ("--key-env", "NO_SUCH_VARIABLE", "NO_SUCH_VARIABLE"),
    ("--aliases", "/nowhere/aliases.json", "/nowhere/aliases.json"),
    ("--out", "/dev/null/out.json", "cannot write /dev/null/out.json"),
])  # fmt: skip
def test_invalid_options_are_refused(describe, endpoint, tmp_path, option, value, words):
    code, printed = describe(option, value)
    assert code == 2 and words in printed and (names_of(tmp_path), endpoint.prompts) == (["classes.txt"], [])


# One prompt


@pytest.fixture
def ask(endpoint, monkeypatch):
    """Function that sends one prompt, and returns its answer."""

    def send(*flags: str, url: str = URL, key: str = KEY) -> str:
        monkeypatch.setenv(KEY_VARIABLE, key)
        words = ["--classes=c", "--context=c", "--out=o", "--model=some-model", "--timeout=30", "--retries=2"]
        words += [f"--endpoint={url}", f"--key-env={KEY_VARIABLE}"]
        return ChatClient(parse_arguments([*words, *flags])).ask("Well?")

    return send


@pytest.fixture
def fails_with(ask, endpoint, capfd, caplog):
    """Function that sends a prompt, and checks its error, the number of requests, and that the key is not printed."""

    def check(words: str, *flags: str, requests: int = 1, url: str = URL) -> None:
        endpoint.headers.clear()
        with pytest.raises(UserError) as caught:
            ask(*flags, url=url)
        message = str(caught.value)
        assert message.startswith(url) and words in message and "\n" not in message and len(message) < 300
        assert ("; --endpoint may have to end in /v1" in message) == (url != URL)
        printed = "".join(traceback.format_exception(caught.value)) + caplog.text + "".join(capfd.readouterr())
        assert [headers["authorization"] for headers in endpoint.headers] == [f"Bearer {KEY}"] * requests
        assert KEY not in printed

    return check


def test_answer_is_the_text_of_the_message(ask, endpoint, caplog):
    endpoint.replies = [
        completion("Yes.\n\nOf course."),
        completion(None),
        completion("Half an", finish_reason="length"),
    ]
    assert [ask(), ask("--max-tokens=500", "--temperature=0")] == ["Yes.\n\nOf course.", ""]
    message = [{"role": "user", "content": "Well?"}]
    assert endpoint.requests == [
        {"model": "some-model", "messages": message},
        {"model": "some-model", "messages": message, "max_tokens": 500, "temperature": 0.0},
    ]
    assert "cut off" not in caplog.text and ask() == "Half an"
    assert "cut off: raise --max-tokens" in caplog.text


@pytest.mark.parametrize(
    "failure", [error_status(429), error_status(503), connection_error("ReadTimeout")], ids=["429", "503", "silence"]
)
def test_temporary_failures_are_retried(ask, endpoint, caplog, failure):
    endpoint.replies = [failure, failure, completion("Yes.")]
    assert (ask(), len(endpoint.prompts)) == ("Yes.", 3) and "Retrying request" in caplog.text


def test_permanent_failures_show_the_reason(fails_with, endpoint):
    endpoint.replies = [error_status(401, f"no such model for {KEY}")]
    fails_with("no such model for [key]")
    endpoint.replies = [error_status(503, "overloaded")] * 3
    fails_with("overloaded", requests=3)
    for name in ("ReadTimeout", "ConnectTimeout", "ConnectError"):
        endpoint.replies = [connection_error(name)]
        fails_with("no answer (Connection refused); check the address, or raise --timeout", "--retries=0")
    for body in ('{"choices": [', "[]", '{"choices": []}', '{"choices": [{"message": {"content": [1]}}]}', "[" * 10**5):
        endpoint.replies = [raw(body)]
        fails_with("the response is no chat completion")
    for reply, path in ((raw("<html>", kind="text/html"), "/"), (error_status(404, "no page"), "/v1/chat/completions")):
        endpoint.replies = [reply]
        fails_with("", url=URL.removesuffix("/v1") + path)


# The key


def test_repeated_key_is_removed(fails_with, ask, endpoint, caplog):
    logging.getLogger("openai").setLevel(logging.DEBUG)
    endpoint.replies = [lambda endpoint, request: error_status(500, str(request.headers.raw))(endpoint, request)]
    fails_with("", "--retries=0")
    assert "/chat/completions" in caplog.text
    endpoint.replies = [completion(f"The key is {KEY}!"), completion("There is none.")]
    assert ask() == "The key is [key]!"
    assert ask(key="none") == "There is none."  # the key of a server that needs none may be a word


@pytest.mark.parametrize("url", [
    "http://api.openai.com/v1", "https://api.openai.com.evil.example/v1", "https://notopenai.com/v1",
])  # fmt: skip
def test_openais_key_is_for_openai_only(monkeypatch, url):
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    assert read_key("https://EU.api.OpenAI.com:443/v1") == KEY
    assert read_key(url, "OPENAI_API_KEY") == KEY  # with the user's consent
    with pytest.raises(UserError, match="--key-env NAME"):
        read_key(url)


def test_openais_headers_are_for_openai_only(ask, endpoint, monkeypatch):
    for name, value in (("ORG_ID", "org-7"), ("PROJECT_ID", "proj-7"), ("CUSTOM_HEADERS", "X-Mine: mine-7")):
        monkeypatch.setenv(f"OPENAI_{name}", value)
    endpoint.replies = [completion("Yes.")] * 2
    ask()
    assert not {"openai-organization", "openai-project", "x-mine"} & set(endpoint.headers[0])
    assert os.environ["OPENAI_ORG_ID"] == "org-7"
    ask("--max-tokens=9", url="https://api.openai.com/v1")
    assert endpoint.headers[1]["openai-organization"] == "org-7"
    assert endpoint.requests[1]["max_completion_tokens"] == 9


@pytest.mark.parametrize(("url", "variable", "value", "words"), [
    *((URL, "MY_KEY", value, "MY_KEY") for value in ("", "sk secret", "sk-s\u00e9cret", "sk\x7fsecret")),
    *((URL, name, "", "NAME of an environment variable") for name in ("sk_secret", "", "1secret")),
    *((url, "MY_KEY", "key", "--endpoint must be a URL") for url in (
        "localhost:8000", "ftp://h/v1", "http://h:99999/", "http://user:secret@h/v1", "http://h/v1?key=secret",
        "https://api..example.com/secret", "http://h/secret\n",
    )),
])  # fmt: skip
def test_invalid_keys_and_endpoints_are_not_repeated(monkeypatch, url, variable, value, words):
    monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(UserError, match=words) as caught:
        read_key(url, variable)
    assert "cret" not in str(caught.value)
