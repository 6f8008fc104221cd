"""What the README and the docs name exists."""

import dataclasses
import re

import pytest
from support import REPOSITORY

import isonet_det

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def expanded(name):
    """Braces as the shell expands them."""
    match = re.search(r"\{([^{}]*)\}", name)
    if not match:
        return [name]
    return [n for part in match[1].split(",") for n in expanded(name.replace(match[0], part, 1))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_file_that_a_page_names_is_there(page):
    text = page.read_text()
    named = re.findall(r"(?<![\w/.])(?:tools|configs|tests|docs|model_zoo)/[\w{},/.-]+\w", text)
    named += [f"configs/{n}" for n in re.findall(r"`([\w{},]+_[\w{},]+\.yaml)`", text)
              if not n.startswith("their_")]  # fmt: skip
    folders = (REPOSITORY, REPOSITORY / "configs" / "lazy")
    missing = [
        name
        for pattern in named
        for name in expanded(pattern)
        if not any((folder / name).exists() for folder in folders)
    ]
    # Detectron2's own tool.
    missing = [name for name in missing if name != "tools/deploy/export_model.py"]
    assert not missing
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("http") or (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_name_of_ours_that_a_page_uses_is_public(page):
    for name in re.findall(r"isonet_det\.(\w+)\(", page.read_text()):
        assert hasattr(isonet_det, name), name


def test_every_config_key_is_explained():
    from isonet_det.config import _all_keys

    stock = set(_all_keys(__import__("detectron2.config").config.get_cfg()))
    text = (REPOSITORY / "README.md").read_text()
    for key in set(_all_keys(isonet_det.get_cfg())) - stock:
        assert key.rsplit(".", 1)[-1] in text, key


def test_the_readme_tells_the_network_options_as_they_are_declared():
    text = (REPOSITORY / "README.md").read_text()
    keys = isonet_det.get_cfg().MODEL.ISONET
    for option in dataclasses.fields(isonet_det.ISONetOptions):
        key = option.name.upper()
        default = f'"{keys[key]}"' if isinstance(keys[key], str) else keys[key]
        assert f"| `{key}` | {default} | {option.metadata['meaning']} |" in text


def test_no_number_is_missing():
    for page in PAGES:
        assert not re.search(r"[A-Z]+_(NUMBERS|TABLE)", page.read_text()), page


def test_the_exceptions_earlier_name_still_catches_it():
    assert getattr(isonet_det, "Isonet" + "Error") is isonet_det.ISONetError
