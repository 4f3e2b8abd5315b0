"""Decides whether the compiled engine is built; all else is in pyproject.toml.

SDAX_NO_EXTENSIONS=1 leaves it out. SDAX_REQUIRE_EXTENSIONS=1 makes it an error if it cannot be
built; else the build goes on without it, and with a warning. "", "0" and "false" mean off.
"""

import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

WITHOUT = """
*** sdax: the compiled engine could not be built: {error}
*** sdax will work all the same, on its engine in pure Python: the same behaviour, but more time
*** spent per function. For the compiled one, install a C compiler (Debian: gcc and python3-dev;
*** macOS: xcode-select --install; Windows: Visual Studio's C++ build tools) and install again."""


def is_on(switch: str) -> bool:
    return os.environ.get(switch, "").strip().lower() not in ("", "0", "false")


class BuildEngine(build_ext):
    """Builds the extension, or makes this a build of pure Python if there is no compiler."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self.cython_c_in_temp = True  # the generated C is no part of the package

    def run(self) -> None:
        built = {*self.get_outputs(), *self.get_output_mapping().values()}
        try:
            super().run()
        except (CCompilerError, BaseError) as error:
            if REQUIRED:
                raise BaseError(
                    f"SDAX_REQUIRE_EXTENSIONS is set, but the compiled engine could not be built: "
                    f"{error}. Is there a C compiler?"
                ) from error
            print(WITHOUT.format(error=error), file=sys.stderr)
            for path in built:  # of an earlier build, maybe of other sources
                Path(path).unlink(missing_ok=True)
            self.extensions = self.distribution.ext_modules = []
            self.distribution.get_command_obj("bdist_wheel").root_is_pure = True


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
    ext_modules=[ENGINE] if WANTED else [],
    cmdclass={"build_ext": BuildEngine},
)
