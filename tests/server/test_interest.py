"""Whether somebody still waits: what is to be done once nobody does is done once, whichever comes first."""

from graft.server.interest import Interest


def test_what_was_said_last_is_done_once() -> None:
    interest, done = Interest(), []
    interest.then(lambda: done.append("first"))
    interest.then(lambda: done.append("last"))
    assert not interest.over and not done
    interest.end()
    interest.end()
    assert interest.over and done == ["last"]


def test_what_is_said_too_late_is_done_at_once() -> None:
    interest, done = Interest(), []
    interest.end()
    interest.then(lambda: done.append("late"))
    assert done == ["late"]
