"""Builds the compiled kernels; everything else about the package is in pyproject.toml."""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = bool(os.environ.get("FASTKUBE_DEBUG"))  # keeps bounds checks and assertions in the kernels

extensions = [
    Extension(
        f"fastkube._ext.{source.stem}",
        [str(source)],
        extra_compile_args=["-O2", "-fno-strict-aliasing"] + ([] if DEBUG else ["-DCYTHON_WITHOUT_ASSERTIONS"]),
    )
    for source in sorted(Path("fastkube/_ext").glob("*.pyx"))
]

setup(
    ext_modules=cythonize(
        extensions,
        language_level=3,
        compiler_directives={"boundscheck": DEBUG, "wraparound": DEBUG, "cdivision": True, "embedsignature": True, "freethreading_compatible": False},
    )
)
