"""One question to a chat endpoint that misbehaves, and the key, which goes nowhere else."""

from __future__ import annotations

import logging
import os
import traceback

import pytest
from fake_endpoint import KEY, KEY_VARIABLE, URL, breaks, fails, raw, says

from trainers.hegraph.describe.__main__ import ChatClient, parse_arguments, read_key
from trainers.hegraph.utils.errors import UserError


@pytest.fixture
def ask(endpoint, monkeypatch):
    def question(*flags: str, url: str = URL, key: str = KEY) -> str:
        monkeypatch.setenv(KEY_VARIABLE, key)
        words = ["--classes=c", "--context=c", "--out=o", "--model=some-model", "--timeout=30", "--retries=2"]
        words += [f"--endpoint={url}", f"--key-env={KEY_VARIABLE}"]
        return ChatClient(parse_arguments([*words, *flags])).ask("Well?")

    return question


@pytest.fixture
def gives_up(ask, endpoint, capfd, caplog):
    """The question must fail with these words after so many requests, and the key must be nowhere."""

    def check(words: str, *flags: str, requests: int = 1, url: str = URL) -> None:
        endpoint.headers.clear()
        with pytest.raises(UserError) as caught:
            ask(*flags, url=url)
        message = str(caught.value)
        assert message.startswith(url) and words in message
        assert "\n" not in message and len(message) < 300
        assert ("; does --endpoint have to end in /v1?" in message) == (url != URL)
        said = "".join(traceback.format_exception(caught.value)) + caplog.text + "".join(capfd.readouterr())
        assert [headers["authorization"] for headers in endpoint.headers] == [f"Bearer {KEY}"] * requests
        assert KEY not in said

    return check


def test_the_answer_is_the_text_of_the_message_or_nothing_where_it_refuses(ask, endpoint, caplog):
    endpoint.replies = [says("Yes.\n\nOf course."), says(None), says("Half an", end="length")]
    assert [ask(), ask("--max-tokens=500", "--temperature=0")] == ["Yes.\n\nOf course.", ""]
    message = [{"role": "user", "content": "Well?"}]
    assert endpoint.requests == [
        {"model": "some-model", "messages": message},
        {"model": "some-model", "messages": message, "max_tokens": 500, "temperature": 0.0},
    ]
    assert "cut off" not in caplog.text
    assert ask() == "Half an"
    assert "cut off: raise --max-tokens" in caplog.text


@pytest.mark.parametrize("failure", [fails(429), fails(503), breaks("ReadTimeout")], ids=["429", "503", "silence"])
def test_a_failure_that_may_pass_is_asked_again_and_that_is_said(ask, endpoint, caplog, failure):
    endpoint.replies = [failure, failure, says("Yes.")]
    assert ask() == "Yes."
    assert len(endpoint.prompts) == 3
    assert "Retrying request" in caplog.text


def test_a_failure_that_does_not_pass_is_told_in_the_servers_words(gives_up, endpoint):
    endpoint.replies = [fails(401, f"no such model for {KEY}")]
    gives_up("no such model for [key]")
    endpoint.replies = [fails(503, "overloaded")] * 3
    gives_up("overloaded", requests=3)
    for name, words in (
        ("ReadTimeout", "no answer in 30 s: raise --timeout"),
        ("ConnectTimeout", "no connection in 10 s: is the address right"),
        ("ConnectError", "no connection: Connection refused"),
    ):
        endpoint.replies = [breaks(name)]
        gives_up(words, "--retries=0")
    for body in ('{"choices": [', "[]", '{"choices": []}', '{"choices": [{"message": {"content": [1]}}]}', "[" * 10**5):
        endpoint.replies = [raw(body)]
        gives_up("what came is no chat completion")
    for reply, path in ((raw("<html>", kind="text/html"), "/"), (fails(404, "no page"), "/v1/chat/completions")):
        endpoint.replies = [reply]
        gives_up("", url=URL.removesuffix("/v1") + path)


# The key


def test_a_server_a_model_or_the_library_that_repeats_the_key_does_not_get_it_out(gives_up, ask, endpoint, caplog):
    logging.getLogger("openai").setLevel(logging.DEBUG)
    endpoint.replies = [lambda endpoint, request: fails(500, str(request.headers.raw))(endpoint, request)]
    gives_up("", "--retries=0")
    assert "/chat/completions" in caplog.text
    endpoint.replies = [says(f"The key is {KEY}!"), says("There is none.")]
    assert ask() == "The key is [key]!"
    assert ask(key="none") == "There is none."  # the key of a server that needs none may be a word


def test_openais_key_goes_to_openai_alone(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    assert read_key("https://EU.api.OpenAI.com:443/v1") == KEY
    for url in ("http://api.openai.com/v1", "https://api.openai.com.evil.example/v1", "https://notopenai.com/v1"):
        assert read_key(url, "OPENAI_API_KEY") == KEY  # the user says so
        with pytest.raises(UserError, match="--key-env NAME"):
            read_key(url)


def test_headers_of_openais_are_sent_to_openai_alone(ask, endpoint, monkeypatch):
    for name, value in (("ORG_ID", "org-7"), ("PROJECT_ID", "proj-7"), ("CUSTOM_HEADERS", "X-Mine: mine-7")):
        monkeypatch.setenv(f"OPENAI_{name}", value)
    endpoint.replies = [says("Yes.")] * 2
    ask()
    assert not {"openai-organization", "openai-project", "x-mine"} & set(endpoint.headers[0])
    assert os.environ["OPENAI_ORG_ID"] == "org-7"
    ask("--max-tokens=9", url="https://api.openai.com/v1")
    assert endpoint.headers[1]["openai-organization"] == "org-7"
    assert endpoint.requests[1]["max_completion_tokens"] == 9


def test_a_key_that_is_missing_cannot_be_sent_or_stands_in_its_variables_place_is_not_repeated(monkeypatch):
    values = ("", "sk secret", "sk-s\u00e9cret", "sk\x7fsecret")
    refused = [("MY_KEY", value, "MY_KEY") for value in values]
    refused += [(name, "", "NAME of an environment variable") for name in ("sk_secret", "", "1secret")]
    for variable, value, words in refused:
        monkeypatch.setenv("MY_KEY", value)
        with pytest.raises(UserError, match=words) as caught:
            read_key(URL, variable)
        assert "cret" not in str(caught.value)


def test_an_endpoint_that_is_no_plain_url_is_refused_and_not_repeated():
    urls = ("http://user:secret@h/v1", "http://h/v1?key=secret", "https://api..example.com/secret", "http://h/secret\n")
    for url in ("localhost:8000", "ftp://h/v1", "http://h:99999/", *urls):
        with pytest.raises(UserError, match="--endpoint must be a URL") as caught:
            read_key(url, "MY_KEY")
        assert "secret" not in str(caught.value)
