"""The project around the package: its version, its metadata, and what a release checks.

The version is tested everywhere; the rest only where there is a source tree, or a checkout.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from email import message_from_string
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

import sdax

pytestmark = pytest.mark.one_python

ROOT = Path(__file__).parent.parent
ADDRESS = "https://git.example/owner/sdax"

needs_source = pytest.mark.skipif(
    not (ROOT / "setup.py").exists(), reason="there is no source tree to build"
)
needs_checkout = pytest.mark.skipif(
    not (ROOT / ".ci").exists(), reason="only a checkout has .ci, and only it is released"
)


def test_the_package_was_built_with_the_version_that_it_has() -> None:
    # After a change of __version__ an editable installation must be built again: `make build`.
    assert version("sdax") == sdax.__version__


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """What the metadata is made of, and the script that releases it, to be changed."""
    root = tmp_path / "source"
    shutil.copytree(
        ROOT / "sdax", root / "sdax", ignore=shutil.ignore_patterns("*.so", "*.pyd", "*.pyc")
    )
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root)
    if (ROOT / ".ci").exists():
        shutil.copytree(ROOT / ".ci", root / ".ci")
    return root


def change(path: Path, pattern: str, replacement: str) -> None:
    text, times = re.subn(pattern, replacement, path.read_text(encoding="utf-8"), flags=re.M)
    assert times == 1
    path.write_text(text, encoding="utf-8")


def set_address(source: Path, address: str) -> None:
    change(source / "pyproject.toml", "^address = .*$", f'address = "{address}"')


def set_version(source: Path, number: str) -> None:
    change(source / "sdax" / "__init__.py", "^__version__ = .*$", f'__version__ = "{number}"')


def metadata(source: Path) -> Any:
    """Build the metadata, as pip does, and return it."""
    out = source.parent / "metadata"
    out.mkdir()
    code = f"from setuptools.build_meta import *; prepare_metadata_for_build_wheel({str(out)!r})"
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=source,
        env={**os.environ, "SDAX_NO_EXTENSIONS": "1", "SDAX_REQUIRE_EXTENSIONS": ""},
        capture_output=True,
        check=True,
        timeout=120,
    )
    (found,) = out.glob("*.dist-info")
    # Not importlib's: Python 3.15 has the description in another place.
    return message_from_string((found / "METADATA").read_text(encoding="utf-8"))


def targets(markdown: str) -> list[str]:
    """Return where the links and pictures of a text lead."""
    tokens = [token for block in MarkdownIt().parse(markdown) for token in block.children or ()]
    found = [token.attrGet("href") or token.attrGet("src") for token in tokens]
    return [str(target) for target in found if target]


@needs_source
def test_without_an_address_there_are_no_urls(source: Path) -> None:
    set_address(source, "")
    made = metadata(source)
    assert made["Version"] == sdax.__version__
    assert made.get_all("Project-URL") is None
    assert made.get_payload().strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()


@needs_source
@pytest.mark.parametrize(("number", "commit"), [("1.2.3", "v1.2.3"), ("1.2.3.dev4", "HEAD")])
def test_the_page_on_pypi_leads_to_the_address(source: Path, number: str, commit: str) -> None:
    set_address(source, ADDRESS + "/")
    set_version(source, number)
    readme = (source / "README.md").read_text(encoding="utf-8")
    extra = "\n[here](#top), ![a picture](docs/a.png), [![a](b.svg)](c.md)\n\n```\n[x](y)\n```\n"
    (source / "README.md").write_text(readme + extra, encoding="utf-8")
    made = metadata(source)
    assert made["Version"] == number
    urls = dict(line.split(", ") for line in made.get_all("Project-URL"))
    assert set(urls) == {"Source", "Documentation", "Changes", "Issues"}
    assert all(url.startswith(ADDRESS) for url in urls.values())
    page = made.get_payload()
    before, after = targets(readme), targets(page)
    assert len(before) > 20
    assert after[: len(before)] == [
        target if "://" in target else f"{ADDRESS}/blob/{commit}/{target}" for target in before
    ]
    assert after[len(before) :] == [
        "#top",
        f"{ADDRESS}/raw/{commit}/docs/a.png",
        f"{ADDRESS}/blob/{commit}/c.md",
        f"{ADDRESS}/raw/{commit}/b.svg",
    ]
    assert "[x](y)" in page


@needs_source
@pytest.mark.skipif(sys.implementation.name != "cpython", reason="only CPython builds the engine")
@pytest.mark.parametrize("required", [False, True])
def test_a_build_without_cython_names_cython(source: Path, required: bool) -> None:
    code = (
        "import sys; sys.modules['Cython'] = None; sys.argv[1:] = ['build_ext']\n"
        "exec(open('setup.py', encoding='utf-8').read(), {'__file__': 'setup.py'})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=source,
        env={
            **os.environ,
            "SDAX_NO_EXTENSIONS": "",
            "SDAX_REQUIRE_EXTENSIONS": "1" if required else "",
        },
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=120,
    )
    assert done.returncode == int(required)
    assert "could not be built: there is no Cython" in done.stderr
    assert 'install Cython (pip install "cython>=3.3")' in done.stderr
    assert "C compiler" not in done.stderr
    assert ("--no-cache-dir --force-reinstall ." in done.stderr) is not required


def release(source: Path, event: str, ref: str, repository: str = "owner/sdax") -> Any:
    """Run .ci/release as GitHub's workflow does."""
    server = "https://git.example"
    return subprocess.run(
        [sys.executable, source / ".ci" / "release"],
        env={
            **os.environ,
            "GITHUB_SERVER_URL": server,
            "GITHUB_REPOSITORY": repository,
            "GITHUB_EVENT_NAME": event,
            "GITHUB_REF": ref,
            "GITHUB_RUN_NUMBER": "57",
        },
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=60,
    )


def version_of(source: Path) -> str:
    text = (source / "sdax" / "__init__.py").read_text(encoding="utf-8")
    (found,) = re.findall('^__version__ = "(.*)"$', text, re.MULTILINE)
    return str(found)


@needs_checkout
@pytest.mark.parametrize(
    ("event", "ref", "repository", "index", "number"),
    [
        ("push", "refs/tags/v1.2.3", "owner/sdax", "pypi", "1.2.3"),
        ("push", "refs/heads/main", "owner/sdax", "testpypi", "1.2.3.dev57"),
        ("push", "refs/heads/main", "fork/sdax", "none", "1.2.3"),
        ("workflow_dispatch", "refs/heads/main", "owner/sdax", "none", "1.2.3"),
        ("workflow_dispatch", "refs/tags/v9", "owner/sdax", "none", "1.2.3"),
    ],
)
def test_where_a_run_of_the_workflow_publishes(
    source: Path, event: str, ref: str, repository: str, index: str, number: str
) -> None:
    set_address(source, ADDRESS)
    set_version(source, "1.2.3")
    done = release(source, event, ref, repository)
    assert (done.returncode, done.stdout) == (0, f"index={index}\n")
    assert version_of(source) == number


@needs_checkout
@pytest.mark.parametrize(
    ("address", "ref", "problem"),
    [
        (ADDRESS, "refs/tags/v1.2.4", "the tag is v1.2.4, but sdax/__init__.py has"),
        ("", "refs/tags/v1.2.3", "set the project's address"),
        ("https://git.example/x/y", "refs/tags/v1.2.3", "this is https://git.example/owner/sdax"),
    ],
)
def test_a_tag_that_is_not_published(source: Path, address: str, ref: str, problem: str) -> None:
    set_address(source, address)
    set_version(source, "1.2.3")
    done = release(source, "push", ref)
    assert (done.returncode, done.stdout) == (1, "")
    assert problem in done.stderr


@needs_checkout
def test_without_an_address_a_push_publishes_nothing(source: Path) -> None:
    set_address(source, "")
    assert release(source, "push", "refs/heads/main").stdout == "index=none\n"


@needs_checkout
def test_every_module_has_its_place_among_the_imports() -> None:
    # What no contract names could import anything without anybody noticing.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (layers,) = (
        contract["layers"]
        for contract in project["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers"
    )
    named = {name.strip() for layer in layers for name in re.split("[|:]", layer)}
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "sdax").rglob("*.py")
    }
    modules = {name.removesuffix(".__init__") for name in modules} - {"sdax", "sdax.engine"}
    assert {
        name for name in modules if not any(f"{name}.".startswith(f"{one}.") for one in named)
    } == set()
    assert named <= modules


@needs_source
def test_the_walk_along_a_run_names_what_exists() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    walk = page.partition("## Reading the code")[2].partition("\n## ")[0]
    steps = re.split(r"^\d+\. ", walk.partition("\n\n`")[0], flags=re.MULTILINE)[1:]
    assert len(steps) >= 10
    for step in steps:
        quoted = re.findall("`([^`]+)`", step)
        source = "".join(
            (ROOT / name).read_text(encoding="utf-8") for name in quoted if "/" in name
        )
        for name in quoted:
            if "/" not in name and name != "asyncio.Task":
                defined = rf"^ *(async def|def|class) {name.rpartition('.')[2]}\b"
                used = rf"\b{name}\("
                assert re.search(f"{defined}|{used}", source, re.MULTILINE), name


@needs_source
def test_the_picture_of_the_rooms_shows_those_that_exist() -> None:
    picture = (ROOT / "docs" / "pictures" / "rooms.svg").read_text(encoding="utf-8")
    (boxes,) = re.findall(r'<g class="box">(.*?)</g>', picture, re.DOTALL)
    names = re.findall(r">([\w/.]+)</text>", boxes)
    assert len(names) > 15
    for name in names:
        path = ROOT / "sdax" / name
        assert path.exists() or path.with_name(f"{path.name}.py").exists(), name
