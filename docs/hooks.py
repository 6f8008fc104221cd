"""What the site makes from the code: the page of config keys."""

import dataclasses
import inspect
import re
from html import unescape

import isonet_det
from isonet_det.config import add_isonet_config, add_pretrain_config
from isonet_det.modeling import FAMILIES


def _declared() -> list[tuple[str, object, str]]:
    """Key, default and comment of every assignment in ``add_isonet_config``; keys in a row share
    the comment above them."""
    values, rows = isonet_det.get_cfg(), []
    source = inspect.getsource(add_isonet_config) + inspect.getsource(add_pretrain_config)
    comment: list[str] = []
    explained = False  # whether the comment's key has come
    for line in map(str.strip, source.splitlines()):
        assigned = re.match(r"cfg\.([A-Z][\w.]*) = (.*)", line)
        if line.startswith("#"):
            comment = [] if explained else comment
            comment.append(line.lstrip("# "))
            explained = False
        elif assigned and assigned[2] != "CfgNode()":
            explained = True
            node: object = values
            for part in assigned[1].split("."):
                node = getattr(node, part)
            parts = node.items() if isinstance(node, dict) else [("", node)]
            text = " ".join(comment)
            rows += [(f"{assigned[1]}.{key}".rstrip("."), value, text) for key, value in parts]
        elif not assigned:
            comment = []
    return rows


def _keys() -> str:
    """A table of every key that this package adds to Detectron2's."""
    options = [
        (f"MODEL.ISONET.{o.name.upper()}", o.default, o.metadata["meaning"])
        for family in FAMILIES.values()
        for o in dataclasses.fields(family.options)
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
    """Docstrings name things in Sphinx's way, which the site does not know; formulas become MathML,
    which browsers draw without a script."""
    from latex2mathml.converter import convert

    html = re.sub(r":(?:func|class|meth|mod|data|attr):(?=<code>)", "", html)
    for kind, opening, closing in (("inline", r"\\\(", r"\\\)"), ("block", r"\\\[", r"\\\]")):
        html = re.sub(
            rf'(?<=class="arithmatex">){opening}(.+?){closing}(?=<)',
            lambda formula, kind=kind: convert(unescape(formula[1]), display=kind),
            html,
            flags=re.S,
        )
    return html
