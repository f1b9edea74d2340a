"""The wheel: built from the checkout, installed where no compiler is, and run."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(600)
def test_wheel_runs_where_no_compiler_is(tmp_path):
    checkout = tmp_path / "checkout"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(checkout)], check=True)
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path)], cwd=checkout, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("fastkube-*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    bin_dir = tmp_path / "venv/bin"
    clean = {**os.environ, "PATH": str(bin_dir)}  # no compiler on the path; where packages come from is as on this machine
    subprocess.run([bin_dir / "python", "-m", "pip", "install", "-q", "-c", str(ROOT / "ci/constraints.txt"), str(wheel)], check=True, env=clean, cwd=tmp_path)
    out = subprocess.run([bin_dir / "fastkube", "version"], check=True, env=clean, cwd=tmp_path, capture_output=True, text=True).stdout
    assert out.startswith("fastkube ")
    out = subprocess.run([bin_dir / "fastkube", "--help"], check=True, env=clean, cwd=tmp_path, capture_output=True, text=True).stdout
    for part in ("apiserver", "controller-manager", "scheduler", "kubelet", "proxy", "dns", "up", "down"):
        assert part in out
