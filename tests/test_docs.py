"""What the README and the docs name exists."""

import re
import runpy

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


def keys_page():
    """The site's page of config keys."""
    path = REPOSITORY / "docs" / "hooks.py"
    hooks = runpy.run_path(str(path))
    return hooks["on_page_markdown"]((path.parent / "keys.md").read_text(), None, None, None)


def test_every_config_key_is_explained():
    from isonet_det.config import _all_keys

    cfg, text = isonet_det.get_cfg(), keys_page()
    stock = set(_all_keys(__import__("detectron2.config").config.get_cfg()))
    for key in set(_all_keys(cfg)) - stock:
        node = cfg
        for part in key.split("."):
            node = getattr(node, part)
        if not isinstance(node, dict):
            row = re.search(rf"^\| `{re.escape(key)}` \| `(.+?)` \| (.*) \|$", text, re.M)
            assert row and row[1] == repr(node) and row[2], key


def test_every_public_name_has_its_place_in_the_reference():
    text = (REPOSITORY / "docs" / "api.md").read_text()
    for name in isonet_det.__all__:
        assert re.search(rf"(:::.*\.{name}$|`{name}`|::: isonet_det\.{name}\b)", text, re.M), name


def test_no_number_is_missing():
    for page in PAGES:
        assert not re.search(r"[A-Z]+_(NUMBERS|TABLE)", page.read_text()), page
