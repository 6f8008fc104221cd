"""The networks, by family. But for ``detectron2.py`` and ``classifier.py``: torch only."""

from .fixup import FIXUP
from .isonet import ISONET

# By MODEL.ISONET.FAMILY. The first that knows a file's names has it; ISONet, which takes any
# ResNet's, comes last.
FAMILIES = {family.name: family for family in (FIXUP, ISONET)}
