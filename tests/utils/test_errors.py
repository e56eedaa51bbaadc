"""A user's mistake ends in one line and exit code 2."""

from __future__ import annotations

import pytest

from trainers.hegraph.utils.errors import UserError, report, unknown


def test_unknown_names_what_came_what_is_near_and_all_that_is_known():
    assert str(unknown("data set", "Digit", ["UCF101", "Digits"])) == (
        "unknown data set 'Digit'; did you mean 'Digits'? (known: Digits, UCF101)"
    )


def test_unknown_finds_the_nearest_name_whatever_its_case():
    assert "did you mean 'EuroSAT'?" in str(unknown("data set", "EUROSAT", ["EuroSAT", "Food101"]))


def test_unknown_suggests_nothing_when_no_name_is_near():
    message = str(unknown("data set", "xyzzy", ["Digits", "UCF101"]))
    assert message == "unknown data set 'xyzzy' (known: Digits, UCF101)"


def test_unknown_takes_any_iterable_of_names():
    assert "did you mean 'beta'?" in str(unknown("key", "betta", iter(["alpha", "beta"])))


def test_a_users_mistake_is_one_line_on_stderr_and_exit_code_2(capsys):
    def command():
        raise UserError("no such file; give another")

    assert report(command) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: no such file; give another\n")


def test_success_is_exit_code_0_without_output(capsys):
    assert report(lambda: None) == 0
    assert capsys.readouterr() == ("", "")


def test_a_mistake_of_the_program_keeps_its_traceback():
    def command():
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        report(command)


def test_an_interruption_from_the_keyboard_is_no_traceback(capsys):
    def command() -> None:
        raise KeyboardInterrupt

    assert report(command) == 130
    assert "interrupted" in capsys.readouterr().err
