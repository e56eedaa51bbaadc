"""One question to a chat endpoint that misbehaves, what is asked, and how an answer is read."""

from __future__ import annotations

import json
import logging
import os
import socket
import traceback

import pytest
from fake_endpoint import KEY, fails, raw, says, send, stalls

from trainers.hegraph.describe.client import ChatClient, is_openai, read_key
from trainers.hegraph.describe.dialogue import MOST_LISTED, Request, UnreadableAnswer, build_prompt, read_answer
from trainers.hegraph.utils.errors import UserError

LOCAL = "http://127.0.0.1:8000/v1"


@pytest.fixture
def ask(endpoint):
    def question(retries: int = 3, timeout: float = 30, key: str = KEY, url: str = "", **options: float) -> str:
        return ChatClient(url or endpoint.url, "some-model", key, timeout, retries, **options).ask("Well?")

    return question


@pytest.fixture
def gives_up(ask, endpoint, capfd, caplog):
    """The question must fail with these words after so many requests, and the key must be nowhere."""

    def check(*words: str, requests: int, **options: float) -> str:
        with pytest.raises(UserError) as caught:
            ask(**options)
        assert len(endpoint.prompts) == requests
        message = str(caught.value)
        assert [word for word in (endpoint.url.removesuffix("/v1"), *words) if word not in message] == []
        assert "\n" not in message
        assert len(message) < 300
        said = "".join(traceback.format_exception(caught.value)) + caplog.text + "".join(capfd.readouterr())
        assert endpoint.keys == [f"Bearer {KEY}"] * requests
        assert KEY not in said
        return message

    return check


# Asking


def test_the_answer_is_the_text_of_the_message_or_nothing_where_it_refuses(ask, endpoint, caplog):
    endpoint.replies = [says("Yes.\n\nOf course."), says(None), says("Half an", end="length")]
    assert [ask(), ask(max_tokens=500, temperature=0.0)] == ["Yes.\n\nOf course.", ""]
    message = [{"role": "user", "content": "Well?"}]
    assert endpoint.requests == [
        {"model": "some-model", "messages": message},
        {"model": "some-model", "messages": message, "max_tokens": 500, "temperature": 0.0},
    ]
    assert "cut off" not in caplog.text
    assert ask() == "Half an"
    assert "cut off: raise --max-tokens" in caplog.text


@pytest.mark.parametrize("failure", [fails(429), fails(503, retry_after="0.01"), stalls], ids=["429", "503", "silence"])
def test_a_failure_that_may_pass_is_asked_again_and_that_is_said(ask, endpoint, caplog, failure):
    endpoint.replies = [failure, failure, says("Yes.")]
    assert ask(timeout=0.3) == "Yes."
    assert len(endpoint.prompts) == 3
    assert "Retrying request" in caplog.text


def test_a_failure_that_will_not_pass_ends_the_command_with_the_servers_words(gives_up, endpoint):
    endpoint.replies = [fails(401, f"no such\nmodel for {KEY}")]
    gives_up("status 401: no such model for [key]", requests=1)


def test_after_the_last_retry_the_reason_is_said(gives_up, endpoint):
    endpoint.replies = [fails(503, "overloaded")] * 3
    gives_up("status 503: overloaded", requests=3, retries=2)
    endpoint.keys.clear(), endpoint.prompts.clear()
    endpoint.replies = [stalls]
    gives_up("no answer in 0.2 s: raise --timeout", requests=1, retries=0, timeout=0.2)


def test_a_host_that_does_not_take_the_connection_is_told_from_a_slow_one(monkeypatch):
    pytest.importorskip("openai", reason="the extra `describe` is not installed: pip install openai")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        with pytest.raises(UserError, match=r"127\.0\.0\.1.*no connection: .*refused"):
            ChatClient(f"http://127.0.0.1:{probe.getsockname()[1]}/v1", "m", KEY, 5, 0).ask("Well?")


@pytest.mark.parametrize(
    "body",
    ['{"choices": [', "[]", '{"choices": []}', '{"choices": [{"message": {"content": [1]}}]}', "", "[" * 100_000],
    ids=lambda body: body[:30],
)
def test_a_body_that_is_no_chat_completion_is_quoted(gives_up, endpoint, body):
    endpoint.replies = [raw(body)]
    gives_up(f"not a chat completion but {body[:120]!r}", requests=1)


@pytest.mark.parametrize("reply", [raw("<html>Welcome</html>"), fails(404, "no page"), fails(405, "no")])
@pytest.mark.parametrize(("path", "better"), [("/", "/v1"), ("/api", "/api/v1"), ("/v1/chat/completions", "/v1")])
def test_an_endpoint_without_v1_gets_a_hint(gives_up, endpoint, reply, path, better):
    host = endpoint.url.removesuffix("/v1")
    endpoint.replies = [reply]
    message = gives_up(requests=1, retries=0, url=host + path)
    assert message.endswith(f"; perhaps --endpoint should be {host}{better}")


def test_an_endpoint_with_v1_gets_no_hint(gives_up, endpoint):
    endpoint.replies = [fails(404, "no such model")]
    assert "perhaps" not in gives_up("no such model", requests=1)


# The key


def test_a_server_or_a_model_that_repeats_the_key_does_not_get_it_out(gives_up, ask, endpoint):
    endpoint.replies = [lambda handler, *_: send(handler, 500, json.dumps({"request": str(handler.headers)}))]
    gives_up(requests=1, retries=0)
    endpoint.replies = [says(f"The key is {KEY}!"), says("There is none.")]
    assert ask() == "The key is [key]!"
    assert ask(key="none") == "There is none."  # the key of a server that needs none may be a word


def test_the_librarys_own_log_does_not_hold_the_key(ask, endpoint, caplog):
    endpoint.replies = [fails(500), says("Yes.")]
    for name in ("openai", "httpx", "httpx2", "httpcore", "httpcore2"):
        logging.getLogger(name).setLevel(logging.DEBUG)
    ask()
    assert "/chat/completions" in caplog.text
    assert KEY not in caplog.text


@pytest.mark.parametrize(
    ("url", "theirs"),
    [
        ("https://api.openai.com/v1", True),
        ("https://EU.api.OpenAI.com:443/v1", True),
        ("http://api.openai.com/v1", False),
        ("https://api.openai.com.evil.example/v1", False),
        ("https://notopenai.com/v1", False),
        (LOCAL, False),
    ],
)
def test_openais_key_goes_to_openai_alone(monkeypatch, url, theirs):
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    assert is_openai(url) == theirs
    if theirs:
        assert read_key(url) == KEY
        return
    with pytest.raises(UserError, match=r"--key-env NAME") as caught:
        read_key(url)
    assert KEY not in str(caught.value)
    assert read_key(url, "OPENAI_API_KEY") == KEY  # the user says so


def test_headers_of_openais_are_sent_to_openai_alone(ask, endpoint, monkeypatch):
    for name, value in (("ORG_ID", "org-7"), ("PROJECT_ID", "proj-7"), ("CUSTOM_HEADERS", "X-Mine: mine-7")):
        monkeypatch.setenv(f"OPENAI_{name}", value)
    endpoint.replies = [says("Yes.")]
    ask()
    assert not {"openai-organization", "openai-project", "x-mine"} & set(endpoint.headers[0])
    assert os.environ["OPENAI_ORG_ID"] == "org-7"
    client = ChatClient("https://api.openai.com/v1", "m", KEY, 1, 1, max_tokens=9)
    assert client._client.organization == "org-7"
    assert client._options == {"max_completion_tokens": 9}


@pytest.mark.parametrize("value", ["", "sk secret", "sk-s\u00e9cret", "sk\x7fsecret"])
def test_a_key_that_is_missing_or_cannot_be_sent_names_the_variable_and_is_not_repeated(monkeypatch, value):
    monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(UserError, match="MY_KEY") as caught:
        read_key(LOCAL, "MY_KEY")
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize("given", [KEY, "sk_secret", "", "1KEY"])
def test_a_key_in_the_place_of_a_variable_is_not_repeated(given):
    with pytest.raises(UserError, match="NAME of an environment variable") as caught:
        read_key(LOCAL, given)
    assert not given or given not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "ftp://host/v1",
        "http://user:secret@host/v1",
        "http://h/v1?key=secret",
        "https://api..example.com/",
    ],
)
def test_an_endpoint_that_is_no_plain_url_is_refused_and_not_repeated(url):
    with pytest.raises(UserError, match="--endpoint must be a URL") as caught:
        ChatClient(url, "m", KEY, 1, 1)
    assert "secret" not in str(caught.value)


# The question


def prompt(requests, classnames=("forest", "Annual_Crop", "river")) -> str:
    return build_prompt("satellite photos of land use", classnames, requests, 5)


def test_the_question_says_what_the_pictures_are_which_classes_there_are_and_which_are_wanted():
    text = prompt([Request("forest", missing=5), Request("Annual_Crop", missing=5)])
    assert "The pictures: satellite photos of land use\n" in text
    assert "The classes: forest; Annual Crop; river\n" in text
    assert "5 for each" in text
    assert "8 to 35 words" in text
    assert text.endswith("The classes to describe:\n- forest\n- Annual Crop\n")


def test_the_question_asks_for_what_is_missing_and_says_what_was_wrong():
    text = prompt([Request("river", ["stream"], 2, ["It has this."], ["4 words: 'A river.'"])])
    assert "- river (a sentence may also call it stream): 2 more, unlike the ones there:\n" in text
    assert "  has: It has this.\n  was refused: 4 words: 'A river.'\n" in text


def test_of_many_classes_the_nearest_are_listed():
    names = [f"c{i}" for i in range(1000)]
    for index, first, last in ((0, 0, 299), (500, 350, 649), (999, 700, 999)):
        listed = prompt([Request(names[index], missing=5)], names).partition("The classes: ")[2].partition("\n")[0]
        assert listed.split("; ") == [*names[first : last + 1], "and others"]
        assert len(listed.split("; ")) == MOST_LISTED + 1


def test_braces_in_a_context_or_a_name_are_text():
    text = build_prompt("a {0} {context}", ["{x}"], [Request("{x}", missing=5)], 5)
    assert "The pictures: a {0} {context}\n" in text
    assert text.endswith("- {x}\n")


# The answer

TABLE = {"cat": ["One.", "Two."], "dog": ["Three."]}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(TABLE),
        f"```json\n{json.dumps(TABLE, indent=2)}\n```",
        f"```\n{json.dumps(TABLE)}\n```\nI hope this helps {{you}}!",
        f"Sure! Here is the JSON you asked for: {json.dumps(TABLE)} Anything else?",
        f'<think>Maybe {{"cat": ["Draft."]}}?</think>{json.dumps(TABLE)}',
        f"Sets like {{}} and {{a, b}} aside: {json.dumps(TABLE)}",
        json.dumps({"Dog": ["Three."], "CAT": [" One. ", "Two."], "cow": ["Not asked for."]}),
        f'Maybe {{"cat": ["Draft."]}}?\n</think>\n\n{json.dumps(TABLE)}',
        f'Maybe {{"cat": ["Draft."],}}, it\'s 5" tall?</think>```json\n{json.dumps(TABLE)}\n```',
    ],
)
def test_the_object_is_found_in_fences_and_prose(text):
    assert read_answer(text, ["cat", "dog"]) == TABLE


RECORDS = [{"class": "cat", "sentences": TABLE["cat"]}, {"class": "dog", "sentences": TABLE["dog"]}]
SINGLES = [
    {"class": "Cat", "sentence": "One."},
    {"class": "cat", "sentence": "Two."},
    {"name": "dog", "text": "Three."},
]
ONE_EACH = [{name: sentences} for name, sentences in TABLE.items()]


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(map(json.dumps, ONE_EACH)),
        "\n".join(map(json.dumps, RECORDS)),
        "\n".join(map(json.dumps, SINGLES)),
        json.dumps(ONE_EACH),
        json.dumps(RECORDS),
        json.dumps(SINGLES),
        json.dumps([TABLE]),
        json.dumps({"classes": TABLE}),
        json.dumps({"status": "ok", "result": {"descriptions": TABLE, "count": 2}}),
        json.dumps({"classes": ["cat", "dog"], "descriptions": RECORDS}),
        json.dumps({"descriptions": ONE_EACH}),
        json.dumps({name: {"sentences": sentences} for name, sentences in TABLE.items()}),
        json.dumps([record | {"model": "m", "words": 2} for record in RECORDS]),
        '{"cat": ["One.", "Two.",], "dog": ["Three."],}',
        '{"cat": ["One.", "Two."\n  ,\n],\n "dog": ["Three.",]\n,\n}\nDone, I think,]',
        '{"classes": {"cat": ["One.", "Two."], "dog": ["Three."],},}',
        '{"cat": ["One.", "Two.",]}\n{"dog": ["Three."]},',
    ],
)
def test_other_forms_that_models_answer_in_are_read(text):
    assert read_answer(text, ["cat", "dog"]) == TABLE
    assert read_answer(f"Here it is:\n```json\n{text}\n```", ["cat", "dog"]) == TABLE


def test_a_comma_in_a_sentence_stays():
    sentences = ['A "cat",] with a bracket.', "A comma,} with a brace."]
    assert read_answer(json.dumps({"cat": sentences})[:-1] + ",}", ["cat"]) == {"cat": sentences}


def test_a_list_that_was_cut_off_gives_what_was_whole():
    assert read_answer(json.dumps(RECORDS)[:-20], ["cat", "dog"]) == {"cat": TABLE["cat"]}


def test_a_class_may_have_the_name_of_a_wrapper():
    assert read_answer('{"classes": ["One."], "note": "cat"}', ["classes", "cat"]) == {"classes": ["One."]}


@pytest.mark.parametrize(
    "text", ['"' * 200_000, '{"' + '\\"' * 200_000, "{" * 200_000, "[{" * 100_000, '{"a": [' * 50_000]
)
def test_a_long_answer_of_brackets_or_quotes_is_read_at_once(text):
    with pytest.raises(UnreadableAnswer):
        read_answer(text, ["cat"])


def test_a_class_that_is_left_out_is_left_out():
    assert read_answer(json.dumps(TABLE), ["cat", "cow"]) == {"cat": ["One.", "Two."]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no JSON objects"),
        ("I cannot help with that.", "no JSON objects"),
        (json.dumps(TABLE)[:-3], "no JSON objects"),
        (str(TABLE), "no JSON objects"),
        (json.dumps(TABLE) * 2, "2 JSON objects where one"),
        ('{"cat": ["One."]}\n{"cat": ["Two."]}', "2 JSON objects where one"),
        ('<think>Maybe {"cat": ["Draft."]}', "no JSON objects"),
        ('{"cat": ["Draft."]}</think>', "no JSON objects"),
        (json.dumps(list(TABLE.values())), "no JSON objects"),
        ("{}", "no JSON objects"),
        ('{"cat": "One."}', "not of the form"),
        ('{"class": "cat"}', "not of the form"),
        ('{"cat": {"a": ["One."], "b": ["Two."]}}', "not of the form"),
        ('{"a": {"b": {"c": {"d": {"e": {"cat": ["One."]}}}}}}', "not of the form"),
        ('{"cat": [1]}', "not of the form"),
        ('{"cat": null}', "not of the form"),
        ('{"a":' * 50_000, "no JSON objects"),
    ],
    ids=lambda text: text[:30],
)
def test_anything_else_is_refused(text, words):
    with pytest.raises(UnreadableAnswer, match=words):
        read_answer(text, ["cat", "dog"])


def test_half_a_character_does_not_reach_a_file():
    (sentence,) = read_answer('{"cat": ["One \\ud83d."]}', ["cat"])["cat"]
    assert sentence.encode() == b"One ?."
