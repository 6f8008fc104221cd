"""What the site makes from the code: the page of config keys."""

import dataclasses
import inspect
import re

import isonet_det
from isonet_det.config import add_isonet_config
from isonet_det.options import ISONetOptions


def _declared() -> list[tuple[str, object, str]]:
    """Key, default and comment of every assignment in ``add_isonet_config``."""
    lines = inspect.getsource(add_isonet_config).splitlines()
    rows: list[tuple[str, object, str]] = []
    values = isonet_det.get_cfg()
    comment: list[str] = []
    for line in lines:
        text = line.strip()
        assigned = re.match(r"cfg\.([A-Z][\w.]*) = (.*)", text)
        if text.startswith("#"):
            comment.append(text.lstrip("# "))
        elif assigned:
            node: object = values
            for part in assigned[1].split("."):
                node = getattr(node, part)
            if isinstance(node, dict):
                for key, value in node.items():
                    if not isinstance(value, dict) and "CfgNode({" in assigned[2]:
                        rows.append((f"{assigned[1]}.{key}", value, " ".join(comment)))
            else:
                rows.append((assigned[1], node, " ".join(comment)))
            # Keys in a row share the comment above the first of them.
        elif not text:
            comment = []
        if assigned and not text.endswith("CfgNode()"):
            following = lines.index(line) + 1
            if following < len(lines) and lines[following].strip().startswith("#"):
                comment = []
    return rows


def _keys() -> str:
    """A table of every key that this package adds to Detectron2's."""
    options = [
        (f"MODEL.ISONET.{o.name.upper()}", o.default, o.metadata["meaning"])
        for o in dataclasses.fields(ISONetOptions)
    ]
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for key, default, meaning in options + _declared():
        text = meaning.replace("|", "\\|")
        lines.append(f"| `{key}` | `{default!r}` | {text} |")
    return "\n".join(lines)


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Fill in what is made from the code."""
    return markdown.replace("<!-- keys -->", _keys())


def on_page_content(html: str, page, config, files) -> str:
    """Docstrings name things in Sphinx's way, which the site does not know."""
    return re.sub(r":(?:func|class|meth|mod|data|attr):(?=<code>)", "", html)
