"""What is installed, which device there is, and whether spectra come out right on it."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import nn

from inrank_monitor import attach
from inrank_monitor.ranks import null_model
from inrank_monitor.spectra import has_float64, leading, multiplies_in_float64, spectrum
from inrank_monitor.spectra.devices import float64_rate

_NEEDED = ("torch", "numpy", "pyarrow", "safetensors", "pandas", "tensorboard", "plotly", "jaxtyping", "tqdm")
_EXTRAS = {"streamlit": "dashboard", "transformers": "gpt2", "tokenizers": "gpt2", "accelerate": "gpt2"}


def examine() -> int:
    """Print what was found; 0 if everything needed is there and every check passed, else 1."""
    print(f"inrank-monitor {_version('inrank-monitor')}, Python {platform.python_version()}, {platform.platform()}")
    good = True
    for package in _NEEDED:
        found = _version(package)
        good &= found is not None
        print(f"  {package:<14} {found or 'MISSING'}")
    for package, extra in _EXTRAS.items():
        print(f"  {package:<14} {_version(package) or f'not installed (extra: {extra})'}")
    print(f"  processors     {os.cpu_count()}, of which PyTorch uses {torch.get_num_threads()}")
    devices = ["cpu"] + [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    for device in devices[1:]:
        print(f"  {device:<14} {torch.cuda.get_device_name(device)}; {_way(torch.device(device))}")
    if len(devices) == 1:
        print("  no GPU: everything runs on the CPU")
    for device in devices:
        for claim, check in _CHECKS.items():
            good &= _report(f"{claim} ({device})", lambda check=check, device=device: check(torch.device(device)))
    good &= _report("a run is written and read back", _run_directory)
    print("all is well" if good else "something is wrong: see FAILED above")
    return 0 if good else 1


def _way(device: torch.device) -> str:
    """Where exact spectra of its weights are computed."""
    if not has_float64(device):
        return "no float64: exact spectra by the CPU"
    where = "there" if multiplies_in_float64(device) else "by the CPU, which is quicker"
    here, host = (float64_rate(one) / 1e9 for one in (device, torch.device("cpu")))
    return f"float64 {here:.0f} GMAC/s, the CPU {host:.0f}: exact products {where}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _report(claim: str, check: Callable[[], str | None]) -> bool:
    try:
        problem = check()
    except Exception as error:  # a self-check reports whatever went wrong
        problem = f"{type(error).__name__}: {error}"
    print(f"  {'FAILED' if problem else 'ok':<7}{claim}" + (f": {problem}" if problem else ""))
    return problem is None


def _sample(device: torch.device) -> torch.Tensor:
    generator = torch.Generator("cpu").manual_seed(0)
    scale = torch.arange(1, 601, device="cpu").rsqrt()
    return (torch.randn(300, 600, generator=generator, dtype=torch.float32, device="cpu") * scale).to(device)


def _gram(device: torch.device) -> str | None:
    matrix = _sample(device)
    exact = torch.linalg.svdvals(matrix.cpu().double())
    error = float((spectrum.singular_values(matrix) - exact).abs().max() / exact[0])
    return None if error <= 1e-7 else f"error {error:.1e} σ₁, at most 1e-7 is right"


def _leading(device: torch.device) -> str | None:
    matrix = _sample(device)
    found = leading.leading_singular_values(matrix, 20)
    error = float((found.values - torch.linalg.svdvals(matrix.cpu().double())[:20]).abs().max())
    rounding = 1e-6 * float(found.values[0])  # of float32
    return None if error <= found.error_bound + rounding else f"error {error:.1e}, bound {found.error_bound:.1e}"


def _null(device: torch.device) -> str | None:
    drawn = spectrum.singular_values(
        torch.randn(200, 400, generator=torch.Generator("cpu").manual_seed(0), dtype=torch.float32, device="cpu").to(
            device
        )
    )
    ratio = float(drawn[0]) / float(null_model.null_singular_values(200, 400)[0])
    return None if abs(ratio - 1) < 0.05 else f"largest value is {ratio:.2f} × the expected one"


def _run_directory() -> str | None:
    from inrank_monitor import open_run

    with tempfile.TemporaryDirectory() as directory:
        model = nn.Linear(8, 8, device="cpu")
        tracker = attach(model, None, Path(directory) / "run", every=1)
        with torch.no_grad():
            model.weight += 1.0
        tracker.step()
        tracker.close()
        run = open_run(tracker.path)
        return None if len(run.measurements) == 1 and not run.problems else f"{run.problems or 'no measurement'}"


_CHECKS = {
    "spectra meet the float64 SVD": _gram,
    "leading values meet their bound": _leading,
    "a random matrix meets the null model": _null,
}
