"""Which way exact spectra take on a device is measured, and said."""

from __future__ import annotations

import pytest
import torch
from helpers.pretended import pretending

from inrank_monitor import doctor
from inrank_monitor.spectra import devices, multiplies_in_float64

pytestmark = pytest.mark.usefixtures("one_thread")
DEVICE = torch.device("cuda", 0)


def test_a_device_takes_the_products_where_it_is_quicker(monkeypatch: pytest.MonkeyPatch) -> None:
    quicker = devices._is_quicker.__wrapped__
    with pretending():
        assert devices.float64_rate(DEVICE) > 1e6
        assert multiplies_in_float64(torch.device("cpu"))
        for rate, wanted in ((2.0, True), (0.5, False)):
            monkeypatch.setattr(devices, "float64_rate", lambda device, rate=rate: rate if device == DEVICE else 1.0)
            assert quicker("cuda", 0) == wanted


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ({}, "exact products there"),
        ({"slow": True}, "by the CPU, which"),
        ({"float64": False}, "no float64"),
    ],
)
def test_the_doctor_says_which_way_exact_spectra_take(kind: dict[str, bool], said: str) -> None:
    with pretending(**kind):
        assert said in doctor._way(DEVICE)
