"""Hosts for the tests of the Dassl trainer: a CoOp checkout with Dassl, real or substitutes."""

from collections.abc import Iterator

import pytest
from standin.hosts import KINDS, Host


@pytest.fixture(scope="module", params=KINDS)
def host(request, tmp_path_factory) -> Iterator[Host]:
    """A host, in whose environment is nothing of ours."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PYTHONPATH", "WORLD_SIZE"):
            patch.delenv(name, raising=False)
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield Host(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def plain(host):
    """The same quick run in both hosts."""
    return host.both("plain")
