"""One question to a chat endpoint that misbehaves, what is asked, and how an answer is read."""

from __future__ import annotations

import email.utils
import json
import logging
import os
import socket
import time
import traceback

import pytest
from fake_endpoint import KEY, completion, fails, hangs_up, raw, says, stalls

from trainers.hegraph.describe.client import LONGEST_REASON, ChatClient, is_openai, read_key, retry_after
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

    def check(*words: str, requests: int, **options: float) -> UserError:
        with pytest.raises(UserError) as caught:
            ask(**options)
        assert len(endpoint.prompts) == requests
        for word in (endpoint.url.removesuffix("/v1"), *words):
            assert word in str(caught.value)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 300
        said = "".join(traceback.format_exception(caught.value)) + caplog.text + "".join(capfd.readouterr())
        assert endpoint.keys == [f"Bearer {KEY}"] * requests
        assert KEY not in said
        assert caught.value.__cause__ is caught.value.__context__ is None
        return caught.value

    return check


# Asking


def test_the_answer_is_the_text_of_the_message(ask, endpoint):
    endpoint.replies = [says("Yes.\n\nOf course.")]
    assert ask() == "Yes.\n\nOf course."
    assert endpoint.prompts == ["Well?"]
    assert endpoint.models == ["some-model"]
    assert endpoint.keys == [f"Bearer {KEY}"]


def test_a_refusal_without_text_is_an_empty_answer(ask, endpoint):
    endpoint.replies = [says(None)]
    assert ask() == ""


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
def test_a_failure_that_may_pass_is_asked_again(ask, endpoint, caplog, status):
    endpoint.replies = [fails(status, "come later"), fails(status), says("Yes.")]
    assert ask() == "Yes."
    assert len(endpoint.prompts) == 3
    assert f"status {status}: come later; asking again in 0.01 s" in caplog.text


def test_waits_double_up_to_the_longest(ask, endpoint, caplog, monkeypatch):
    monkeypatch.setattr("trainers.hegraph.describe.client.LONGEST_WAIT", 0.03)
    endpoint.replies = [fails(500)] * 4 + [says("Yes.")]
    ask(retries=4)
    waits = [record.getMessage().rpartition(" in ")[2] for record in caplog.records if "asking" in record.getMessage()]
    assert waits == ["0.01 s", "0.02 s", "0.03 s", "0.03 s"]


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_waited_for(ask, endpoint, status, monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    endpoint.replies = [fails(status, retry_after="7"), says("Yes.")]
    assert ask() == "Yes."
    assert waits == [7]


def test_retry_after_is_read_as_seconds_milliseconds_or_a_date(monkeypatch):
    assert retry_after({"retry-after": "7"}) == 7
    assert retry_after({"retry-after": "0.5"}) == 0.5
    assert retry_after({"retry-after-ms": "250", "retry-after": "7"}) == 0.25
    monkeypatch.setattr(time, "time", lambda: 1_000_000_000.0)
    assert retry_after({"retry-after": email.utils.formatdate(1_000_000_090, usegmt=True)}) == 90
    assert retry_after({"retry-after": email.utils.formatdate(999_999_910, usegmt=True)}) == 0


@pytest.mark.parametrize("headers", [{}, {"retry-after": "soon"}, {"retry-after": "-3"}, {"retry-after": "nan"}])
def test_a_retry_after_that_says_nothing_is_no_wait(headers):
    assert retry_after(headers) == 0


def test_a_retry_after_of_a_day_ends_the_command(gives_up, endpoint):
    endpoint.replies = [fails(429, "daily limit", retry_after="86400")]
    gives_up("status 429: daily limit", "asks to wait 86400 s", requests=1)


def test_a_used_up_quota_ends_the_command(gives_up, endpoint):
    endpoint.replies = [fails(429, "You exceeded your current quota", code="insufficient_quota")]
    gives_up("You exceeded your current quota", requests=1)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_failure_that_will_not_pass_ends_the_command_with_the_servers_words(gives_up, endpoint, status):
    endpoint.replies = [fails(status, "no such\nmodel")]
    gives_up(f"status {status}: no such model", requests=1)


def test_after_the_last_retry_the_reason_is_said(gives_up, endpoint):
    endpoint.replies = [fails(503, "overloaded")] * 3
    gives_up("status 503: overloaded", "after 3 tries", requests=3, retries=2)


def test_an_error_page_instead_of_json_is_quoted_in_short(gives_up, endpoint):
    endpoint.replies = [lambda handler, *_: raw_error(handler)]
    gives_up("status 404", "<html>", requests=1)


def raw_error(handler) -> None:
    page = ("<html>" + "x" * 5000).encode()
    handler.send_response(404)
    handler.send_header("content-type", "text/html")
    handler.send_header("content-length", str(len(page)))
    handler.end_headers()
    handler.wfile.write(page)


def test_silence_is_asked_again_after_the_timeout(ask, endpoint, caplog):
    endpoint.replies = [stalls, says("Yes.")]
    assert ask(timeout=0.3) == "Yes."
    assert len(endpoint.prompts) == 2
    assert "no answer in 0.3 s; asking again" in caplog.text


def test_lasting_silence_ends_the_command(gives_up, endpoint):
    endpoint.replies = [stalls] * 2
    gives_up("no answer in 0.2 s, after 2 tries; it took the", "--timeout", requests=2, retries=1, timeout=0.2)


def test_a_host_that_does_not_even_take_the_connection_is_told_from_a_slow_one(monkeypatch):
    pytest.importorskip("openai", reason="the extra `describe` is not installed: pip install openai")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("trainers.hegraph.describe.client.LONGEST_CONNECT", 0.2)
    waiting = [socket.socket() for _ in range(4)]
    try:
        with socket.socket() as full:  # once its queue is full, the system leaves further connections unanswered
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            for client in waiting:
                client.setblocking(False)
                client.connect_ex(full.getsockname())
            url = f"http://127.0.0.1:{full.getsockname()[1]}/v1"
            with pytest.raises(UserError, match=r"no connection in 0\.2 s, after 1 tries; the host does not respond"):
                ChatClient(url, "m", KEY, 30, 0).ask("Well?")
    finally:
        for client in waiting:
            client.close()


def test_an_answer_that_breaks_off_is_asked_for_again(ask, endpoint, caplog):
    endpoint.replies = [hangs_up, says("Yes.")]
    assert ask() == "Yes."
    assert "no connection" in caplog.text


def test_an_endpoint_that_is_not_there_is_named(monkeypatch):
    pytest.importorskip("openai", reason="the extra `describe` is not installed: pip install openai")
    monkeypatch.setattr("trainers.hegraph.describe.client.FIRST_WAIT", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/v1"
        with pytest.raises(
            UserError, match=r"127\.0\.0\.1.*no connection: .*refused.*after 2 tries; is the server run"
        ):
            ChatClient(url, "m", KEY, 5, 1).ask("Well?")


@pytest.mark.parametrize(
    "body",
    [
        '{"choices": [',
        "null",
        "[]",
        "{}",
        '{"choices": []}',
        '{"choices": [{"message": {}}]}',
        '{"choices": [{"message": {"content": [1]}}]}',
        "",
        "[" * 100_000,
    ],
    ids=lambda body: body[:30],
)
def test_a_body_that_is_no_chat_completion_is_asked_for_again_and_quoted(ask, endpoint, caplog, body):
    endpoint.replies = [raw(body), says("Yes.")]
    assert ask() == "Yes."
    assert f"not a chat completion but {' '.join(body.split())[:LONGEST_REASON]!r}" in caplog.text


def test_a_web_page_is_quoted(gives_up, endpoint):
    endpoint.replies = [raw("<html>Welcome</html>", content_type="text/html")] * 2
    assert "perhaps" not in str(gives_up("<html>Welcome</html>", requests=2, retries=1))


@pytest.mark.parametrize("reply", [raw("<html>Welcome</html>"), fails(404, "no page"), fails(405, "no")])
@pytest.mark.parametrize("path", ["", "/", "/api", "/chat/completions", "/v1/chat/completions"])
def test_an_endpoint_without_v1_gets_a_hint(gives_up, endpoint, reply, path):
    host = endpoint.url.removesuffix("/v1")
    better = {"": "/v1", "/": "/v1", "/api": "/api/v1", "/chat/completions": "/v1"}.get(path, "/v1")
    endpoint.replies = [reply]
    assert str(gives_up(requests=1, retries=0, url=host + path)).endswith(
        f"; perhaps --endpoint should be {host}{better}"
    )


def test_an_endpoint_with_v1_gets_no_hint(gives_up, endpoint):
    endpoint.replies = [fails(404, "no such model")]
    assert "perhaps" not in str(gives_up("no such model", requests=1))


def test_the_hint_comes_with_the_first_failure(ask, endpoint, caplog):
    endpoint.replies = [raw("<html>"), says("Yes.")]
    assert ask(url=endpoint.url.removesuffix("/v1")) == "Yes."
    assert f"perhaps --endpoint should be {endpoint.url}" in caplog.text


def test_the_length_and_the_temperature_of_answers_are_asked_for_only_if_given(ask, endpoint):
    endpoint.replies = [says("Yes."), says("Yes.")]
    ask()
    ask(max_tokens=500, temperature=0.0)
    first, second = endpoint.requests
    assert set(first) == {"model", "messages"}
    assert set(second) == {"model", "messages", "max_tokens", "temperature"}
    assert (second["max_tokens"], second["temperature"]) == (500, 0)


def test_an_answer_that_was_cut_off_for_its_length_is_said(ask, endpoint, caplog):
    endpoint.replies = [says("Half an", end="length")]
    assert ask() == "Half an"
    assert "cut off: raise --max-tokens" in caplog.text


# The key


def test_a_server_that_repeats_the_key_does_not_get_it_into_a_message(gives_up, endpoint):
    endpoint.replies = [fails(401, f"Incorrect API key provided: {KEY}.")]
    assert "Incorrect API key provided: [key]." in str(gives_up(requests=1))


@pytest.mark.parametrize("status", [200, 500])
def test_a_server_that_repeats_the_request_does_not_get_the_key_into_a_message(gives_up, endpoint, status):
    def repeat(handler, names, prompt):
        body = json.dumps({"request": str(handler.headers)})
        handler.send_response(status)
        handler.send_header("content-type", "application/json")
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body.encode())

    endpoint.replies = [repeat] * 2
    gives_up(requests=2, retries=1)


def test_a_model_that_repeats_the_key_does_not_get_it_into_an_answer(ask, endpoint):
    endpoint.replies = [says(f"The key is {KEY}!")]
    assert ask() == "The key is [key]!"


def test_the_key_of_a_server_that_needs_none_may_be_a_word(ask, endpoint):
    endpoint.replies = [says("There is none.")]
    assert ask(key="none") == "There is none."


def test_the_librarys_own_log_does_not_hold_the_key(ask, endpoint, caplog):
    endpoint.replies = [fails(500), says("Yes.")]
    for name in ("openai", "httpx", "httpx2", "httpcore", "httpcore2"):
        logging.getLogger(name).setLevel(logging.DEBUG)
    ask()
    assert "/chat/completions" in caplog.text
    assert KEY not in caplog.text


def test_the_client_does_not_show_the_key(endpoint):
    client = ChatClient(endpoint.url, "m", KEY, 1, 1)
    assert KEY not in repr(client) + str(client)


def test_the_key_is_read_without_the_line_end_of_a_file(monkeypatch):
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    assert read_key(LOCAL, "MY_KEY") == KEY


@pytest.mark.parametrize(
    ("url", "theirs"),
    [
        ("https://api.openai.com/v1", True),
        ("https://eu.api.openai.com/v1", True),
        ("https://API.OpenAI.com:443/v1", True),
        ("http://api.openai.com/v1", False),
        ("https://api.openai.com.evil.example/v1", False),
        ("https://notopenai.com/v1", False),
        ("https://my.openai.azure.com/openai/v1", False),
        (LOCAL, False),
    ],
)
def test_openais_key_goes_to_openai_alone(monkeypatch, url, theirs):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert is_openai(url) == theirs
    if theirs:
        assert read_key(url) == KEY
        return
    with pytest.raises(UserError, match=r"--key-env NAME") as caught:
        read_key(url)
    assert url in str(caught.value)
    assert KEY not in str(caught.value)
    assert read_key(url, "OPENAI_API_KEY") == KEY  # the user says so


def test_headers_of_openais_are_not_sent_to_another_endpoint(ask, endpoint, monkeypatch):
    for name, value in (("ORG_ID", "org-7"), ("PROJECT_ID", "proj-7"), ("CUSTOM_HEADERS", "X-Mine: mine-7")):
        monkeypatch.setenv(f"OPENAI_{name}", value)
    endpoint.replies = [says("Yes.")]
    ask()
    (headers,) = endpoint.headers
    assert "authorization" in headers
    assert not {"openai-organization", "openai-project", "x-mine"} & set(headers)
    assert os.environ["OPENAI_ORG_ID"] == "org-7"


def test_openai_gets_its_headers(monkeypatch):
    pytest.importorskip("openai", reason="the extra `describe` is not installed: pip install openai")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-7")
    client = ChatClient("https://api.openai.com/v1", "m", KEY, 1, 1, max_tokens=9)
    assert client._client.organization == "org-7"
    assert client._options == {"max_completion_tokens": 9}


@pytest.mark.parametrize("value", [None, "", " \n"])
def test_a_missing_key_names_the_variable(monkeypatch, value):
    monkeypatch.delenv("MY_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(UserError, match=r"set MY_KEY.*--key-env"):
        read_key(LOCAL, "MY_KEY")


@pytest.mark.parametrize("value", ["sk secret", "sk\nsecret", "sk-sécret", "sk\x7fsecret"])
def test_a_key_that_cannot_be_sent_is_not_repeated(monkeypatch, value):
    monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(UserError, match="MY_KEY") as caught:
        read_key(LOCAL, "MY_KEY")
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize("given", [KEY, "sk_secret", "", "MY-KEY", "1KEY"])
def test_a_key_in_the_place_of_a_variable_is_not_repeated(given):
    with pytest.raises(UserError, match="NAME of an environment variable") as caught:
        read_key(LOCAL, given)
    assert not given or given not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000",
        "ftp://host/v1",
        "http://",
        "http://user:secret@host/v1",
        "http://h/v1?key=secret",
        "http://h:x/",
        "https://api..example.com/v1",
        f"https://{'a' * 64}.example.com/v1",
        "https://api.example.com/\tv1",
        "http://\N{SNOWMAN}.example/v1/\n",
    ],
)
def test_an_endpoint_that_is_no_plain_url_is_refused_and_not_repeated(url):
    with pytest.raises(UserError, match="--endpoint must be a URL") as caught:
        ChatClient(url, "m", KEY, 1, 1)
    assert "secret" not in str(caught.value)


# The question


def test_the_question_asks_for_no_comparison():
    text = prompt([Request("forest", missing=5)])
    assert "confused" not in text
    assert "tells it from" not in text
    assert "compares with none" in text


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


def test_the_fake_endpoint_speaks_as_a_real_one():
    assert json.loads(completion("x"))["choices"][0]["message"]["content"] == "x"
