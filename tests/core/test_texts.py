"""Texts of others, as reasons, traces, messages and logs have them."""

import pytest

from edgeroute import BadReply
from edgeroute.core.error_codes_and_texts import FOREIGN, LOST, OWN, class_name, clean, error_message, error_text, printable


class Unspeakable(Exception):
    """What cannot be formatted."""

    def __str__(self):
        raise ZeroDivisionError


def unspeakable(raised):
    """An exception that raises that when it is formatted, of a class that raises it when it is named."""

    class Nameless(type):
        @property
        def __name__(cls):
            raise raised

    class Error(BaseException, metaclass=Nameless):
        def __str__(self):
            raise raised

    return Error()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("all well", "all well"),
        ("two\nlines\tand\rmore", "two lines and more"),
        ("\x1b[2J\x07\x00\x9b", f"{LOST}[2J{LOST}{LOST}{LOST}"),
        ("pay\u202eabc\u200b", f"pay{LOST}abc{LOST}"),
        ("\ud800", LOST),
        ("\u2028x", " x"),
        (7, "7"),
    ],
)
def test_a_text_becomes_one_printable_line(text, shown):
    """Line ends become spaces; escapes, direction marks and half characters are marked as lost."""
    assert clean(text) == shown


def test_a_text_has_a_limit():
    """The cut is visible."""
    assert clean("x" * OWN) == "x" * OWN
    assert clean("x" * (OWN + 1)) == "x" * (OWN - 1) + "…"
    assert len(clean("\n" * 10**6, 9)) == 9


def test_what_an_exception_says():
    """A foreign one gets fewer characters than one of edgeroute's, and may be unable to say anything."""
    assert len(error_message(RuntimeError("x" * 1000))) == FOREIGN
    assert len(error_message(BadReply("x" * 1000))) == OWN
    assert error_message(KeyError()) == error_message(Unspeakable()) == ""
    assert str(BadReply("a\n\x1b[2Jb")) == f"a {LOST}[2Jb"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (BadReply("no JSON"), "no JSON"),
        (OSError("cut"), "OSError: cut"),
        (OSError("OSError: cut"), "OSError: cut"),
        (OSError(), "OSError"),
    ],
)
def test_a_foreign_error_is_told_with_its_class(error, text):
    """Once, and alone if there is nothing else."""
    assert error_text(error) == text


@pytest.mark.parametrize("raised", [ZeroDivisionError, SystemExit, GeneratorExit, BaseException])
def test_an_exception_that_cannot_be_formatted_has_its_class(raised):
    """Whatever it raises; a class's own idea of its name is not asked for."""
    error = unspeakable(raised)
    assert error_message(error) == ""
    assert class_name(error) == "Error"


def test_ctrl_c_passes_while_a_text_is_made():
    """It is the user's, not the exception's."""
    with pytest.raises(KeyboardInterrupt):
        error_message(unspeakable(KeyboardInterrupt))


def test_a_text_with_methods_of_its_own_is_taken_as_it_is():
    """A class derived from `str` may do anything in its methods."""

    class Text(str):
        __slots__ = ()
        __len__ = isprintable = __getitem__ = lambda *_: 1 / 0

    class Error(Exception):
        def __str__(self):
            return Text("broken\n")

    assert error_message(Error()) == clean(Text("broken\n")) == "broken "
    assert class_name(type("two\nlines", (Exception,), {})()) == "two lines"


def test_several_lines_stay_lines():
    """Without anything else that does not print."""
    assert printable("one line") == "one line"
    assert printable("a\n\x1b]0;b\x07\n") == f"a\n{LOST}]0;b{LOST}\n"
