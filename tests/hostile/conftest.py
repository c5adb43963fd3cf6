"""What a clear error is."""

import pytest


@pytest.fixture
def assert_clear(capfd):
    """assert_clear(name, action, kind, words): the action raises `kind` (or, for CqError, one of its family) with one
    sentence of a readable length that matches `words`; it prints nothing."""

    def check(name, action, kind, words):
        with pytest.raises(kind, match=words) as raised:
            action()
        assert len(str(raised.value)) < 400 and "\n" not in str(raised.value), name
        assert capfd.readouterr() == ("", ""), name

    return check
