"""Builds the compiled engine; everything else is in pyproject.toml.

Switches, by environment: SANITIZE=1 (address and undefined-behaviour sanitizers), COVERAGE=1 (line tracing), DEBUG=1 (-O0,
bounds checks). Module names come from the mirrored tree: ext/sluicefs/engine/x.pyx is sluicefs.engine.x.
"""

import os
import sys
from pathlib import Path

from setuptools import Extension, setup

SANITIZE, COVERAGE, DEBUG = (os.environ.get(name) == "1" for name in ("SANITIZE", "COVERAGE", "DEBUG"))
BUILDS = {"clean", "egg_info", "dist_info", "sdist", "--version", "--help"}

compile_args = ["-O0", "-g"] if DEBUG else ["-O3"]
link_args: list[str] = []
macros: list[tuple[str, str | None]] = []
if SANITIZE:
    flags = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-g"]
    compile_args, link_args = ["-O1", *flags], flags
if COVERAGE:
    macros.append(("CYTHON_TRACE_NOGIL", "1"))

directives = {
    "language_level": 3,
    "boundscheck": DEBUG or SANITIZE,
    "wraparound": False,
    "initializedcheck": DEBUG or SANITIZE,
    "cdivision": True,
    "embedsignature": True,
    "binding": True,
    "linetrace": COVERAGE,
}

extensions = [
    Extension(
        ".".join(path.relative_to("ext").with_suffix("").parts),
        [str(path)],
        extra_compile_args=compile_args,
        extra_link_args=link_args,
        define_macros=macros,
        depends=[str(header) for header in sorted(Path("ext").rglob("*.pxd"))],
    )
    for path in sorted(Path("ext").rglob("*.pyx"))
]

if not BUILDS.intersection(sys.argv[1:2]):
    from Cython.Build import cythonize

    kind = "sanitize" if SANITIZE else "debug" if DEBUG else "c"
    extensions = cythonize(
        extensions,
        include_path=["ext"],
        build_dir=None if COVERAGE else f"build/{kind}",  # coverage looks for the C file beside its source
        compiler_directives=directives,
        annotate=os.environ.get("ANNOTATE") == "1",
        nthreads=os.cpu_count() or 1,
    )

setup(ext_modules=extensions)
