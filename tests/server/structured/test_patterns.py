"""Patterns mean what JSON Schema means by them."""

import pytest

from graft.server.errors import ConstraintError
from graft.server.structured.patterns import portable


def test_plain_ones_stay_as_they_are():
    for pattern in ("^a+$", r"\.\\[a-z]", "[^a-z]", r"\[", r"(x|y){1,3}\d", ""):
        assert portable(pattern) == pattern


def test_what_rust_reads_otherwise_is_spelt_out():
    assert portable("[[&~]") == r"[\[\&\~]" and portable("[[^a]") == r"[\[^a]"
    assert portable(".") == r"[^\n\r\u2028\u2029]" and portable("[.]") == "[.]" and portable(r"\.") == r"\."
    assert portable(r"\s[\s]\\s") == r"[ \t\n\x0B\x0C\r][[ \t\n\x0B\x0C\r]]\\s"


@pytest.mark.parametrize("pattern", ["[]", "[^]", "a[]b]"])
def test_classes_of_nothing_are_refused(pattern):
    with pytest.raises(ConstraintError, match="empty class"):
        portable(pattern)
