"""What `graft bench` measures: a URL that can't be one is refused in words."""

import pytest

from graft.hub.errors import GraftError
from graft.server.benchmark.targets import UrlTarget


@pytest.mark.parametrize("url", ["localhost:8000", "nowhere", "http://localhost:99999", "http://[::1", ""])
def test_what_is_no_url_is_refused(url):
    with pytest.raises(GraftError, match="no server's URL"):
        UrlTarget(url)
