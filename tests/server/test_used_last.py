"""What was used last stays."""

from graft.server.used_last import UsedLast


def test_what_was_read_or_written_last_stays():
    kept = UsedLast(3)
    for key in "abc":
        kept[key] = key.upper()
    assert kept["a"] == "A"
    kept["b"] = "again"
    kept["d"] = "D"
    assert [*kept] == ["a", "b", "d"] and kept["b"] == "again"
