"""Builds what pyproject.toml cannot state: the compiled engine, and a part of the metadata.

SDAX_NO_EXTENSIONS=1 leaves the engine out. SDAX_REQUIRE_EXTENSIONS=1 makes it an error if it cannot
be built; else the build goes on without it, and with a warning. "", "0" and "false" mean off.

The version is that of `sdax/__init__.py`. The URLs and the description, which is README.md with its
links made absolute, need the project's address: `[tool.sdax]` in pyproject.toml.
"""

import os
import re
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

WITHOUT = """
*** sdax: the compiled engine could not be built: {error}
*** sdax still works. It uses its engine in pure Python, which behaves the same and is slower.
*** To get the compiled engine, {advice}.
*** Then run this in a clone of sdax:
***     pip install --no-cache-dir --force-reinstall .
*** With these options, pip builds again and does not use a wheel from its cache."""

NO_COMPILER = (
    "install a C compiler (Debian: gcc and python3-dev; macOS: xcode-select --install; "
    "Windows: Visual Studio's C++ build tools)"
)
NO_CYTHON = 'install Cython (pip install "cython>=3.3"), or build without --no-build-isolation'


def is_on(switch: str) -> bool:
    return os.environ.get(switch, "").strip().lower() not in ("", "0", "false")


class BuildEngine(build_ext):
    """Builds the extension, or makes this a build of pure Python if there is no compiler."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self.cython_c_in_temp = True  # the generated C is no part of the package

    def run(self) -> None:
        built = {*self.get_outputs(), *self.get_output_mapping().values()}
        advice = NO_COMPILER if find_spec("Cython") else NO_CYTHON
        try:
            if advice is NO_CYTHON:
                raise BaseError("there is no Cython")
            super().run()
        except (CCompilerError, BaseError) as error:
            if REQUIRED:
                raise BaseError(
                    f"SDAX_REQUIRE_EXTENSIONS is set, but the compiled engine could not be built: "
                    f"{error}; {advice}"
                ) from error
            print(WITHOUT.format(error=error, advice=advice), file=sys.stderr)
            for path in built:  # of an earlier build, maybe of other sources
                Path(path).unlink(missing_ok=True)
            self.extensions = self.distribution.ext_modules = []
            self.distribution.get_command_obj("bdist_wheel").root_is_pure = True


def read(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def read_version() -> str:
    line = re.search(r'^__version__ = "(.+)"$', read("sdax/__init__.py"), re.MULTILINE)
    if line is None:
        raise SystemExit('sdax/__init__.py has no line like this: __version__ = "1.2.3"')
    return line[1]


def urls() -> dict[str, str]:
    if not ADDRESS:
        return {}
    return {
        "Source": ADDRESS,
        "Documentation": f"{ADDRESS}/blob/HEAD/docs/index.md",
        "Changes": f"{ADDRESS}/blob/HEAD/CHANGES.md",
        "Issues": f"{ADDRESS}/issues",
    }


def description() -> str:
    """README.md; with an address, its relative links lead to the files of this version there."""
    if not ADDRESS:
        return read("README.md")
    commit = "HEAD" if "dev" in VERSION else f"v{VERSION}"

    def absolute(found: re.Match[str]) -> str:
        text, target = found["text"], found["target"]
        if target is None:
            return found[0]
        kind = "raw" if text.startswith("!") else "blob"
        return f"{text}({ADDRESS}/{kind}/{commit}/{target})"

    return MARKDOWN.sub(absolute, read("README.md"))


# A block of code, in which no link is a link, or the end of a link with a relative target.
MARKDOWN = re.compile(
    r"^```.*?^```|(?P<text>!\[[^]]*\]|\])\((?!\w+:|#)(?P<target>[^)]+)\)", re.MULTILINE | re.DOTALL
)
ADDRESS = tomllib.loads(read("pyproject.toml"))["tool"]["sdax"]["address"].rstrip("/")
VERSION = read_version()
REQUIRED = is_on("SDAX_REQUIRE_EXTENSIONS")
UNWANTED = is_on("SDAX_NO_EXTENSIONS")
if REQUIRED and UNWANTED:
    raise SystemExit("SDAX_NO_EXTENSIONS and SDAX_REQUIRE_EXTENSIONS contradict each other")
WANTED = REQUIRED or (not UNWANTED and sys.implementation.name == "cpython")
ENGINE = Extension(
    "sdax._core",
    ["sdax/_core.pyx"],
    include_dirs=["sdax"],
    depends=["sdax/_core.h"],
    extra_compile_args=["-O3", "-g0"] if os.name == "posix" else [],
    extra_link_args=["-s"] if sys.platform == "linux" else [],
)
setup(
    version=VERSION,
    long_description=description(),
    long_description_content_type="text/markdown",
    project_urls=urls(),
    ext_modules=[ENGINE] if WANTED else [],
    cmdclass={"build_ext": BuildEngine},
)
