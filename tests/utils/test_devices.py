"""Where torch computes, as a user or a configuration names it. No GPU is needed: torch is asked by stand-ins."""

from __future__ import annotations

import pytest
import torch

from trainers.hegraph.utils.devices import available_device, choose_device, wait_for
from trainers.hegraph.utils.errors import UserError


@pytest.mark.parametrize(
    ("there", "wanted", "device"), [(True, True, "cuda"), (True, False, "cpu"), (False, True, "cpu")]
)
def test_a_gpu_is_taken_where_there_is_one_and_it_is_wanted(monkeypatch, there, wanted, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert available_device(wanted) == device


@pytest.mark.parametrize("given", [None, ""])
def test_who_names_no_device_gets_a_gpu_where_there_is_one(monkeypatch, given):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device(given, "--device") == "cuda"


@pytest.mark.parametrize("given", ["tpu", "meta", "cpu:x", "cuda:"])
def test_another_kind_of_device_is_refused(given):
    with pytest.raises(UserError, match=f"--device must be cpu, cuda or cuda:N, got '{given}'"):
        choose_device(given, "--device")


@pytest.mark.parametrize(("device", "waits"), [("cuda:1", ["cuda:1"]), ("cpu", [])])
def test_a_gpu_is_waited_for_and_a_cpu_is_not(monkeypatch, device, waits):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: waited.append(str(device)))
    wait_for(torch.device(device))
    assert waited == waits
