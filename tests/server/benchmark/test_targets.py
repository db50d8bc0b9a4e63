"""What `graft bench` measures: a URL that can't be one is refused in words."""

import pytest

from graft.hub.errors import GraftError
from graft.server.benchmark import targets
from graft.server.benchmark.targets import UrlTarget
from graft.server.benchmark.workload import RequestDraw, Workload
from graft.server.sampling.params import GREEDY, Sampling


@pytest.mark.parametrize("url", ["localhost:8000", "nowhere", "http://localhost:99999", "http://[::1", ""])
def test_what_is_no_url_is_refused(url):
    with pytest.raises(GraftError, match="no server's URL"):
        UrlTarget(url)


def test_requests_are_drawn_as_they_are_asked_for():
    """Each request has a seed of its own, and a server is asked for what an engine is."""
    work = Workload(requests=3, prompt_tokens=16, new_tokens=2, sampling=Sampling(top_p=0.9, seed=7, logprobs=2))
    jobs = RequestDraw(work, range(2, 90), [None]).round()
    assert [job.sampling.seed for job in jobs] == [7, 8, 9]
    assert targets._sampling_fields(jobs[1].sampling) == {"temperature": 1.0, "top_p": 0.9, "seed": 8, "logprobs": 2}
    assert targets._sampling_fields(GREEDY) == {"temperature": 0}
