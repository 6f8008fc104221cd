"""A person's own COCO-format data from the command line."""

import os

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..errors import ISONetError
from .sets import register


def register_from_argument(argument: str) -> str:
    """Register ``NAME=annotations.json:image_root`` as a COCO-format data set.

    Returns:
        the data set's name.

    Raises:
        ISONetError: the argument is no such triple, or the name is taken by other files.
    """
    name, equals, paths = argument.partition("=")
    pairs = [(paths[:i], paths[i + 1 :]) for i, sign in enumerate(paths) if sign == ":"]
    pairs = [(os.path.expanduser(a), os.path.expanduser(b)) for a, b in pairs if a and b]
    if not (name and equals and pairs):
        raise ISONetError(f"--dataset is NAME=annotations.json:image_root, found {argument!r}")
    # The colon that parts two paths that are there; a path may have colons of its own.
    existing = [pair for pair in pairs if os.path.isfile(pair[0]) and os.path.isdir(pair[1])]
    json_file, image_root = (existing or pairs)[-1]
    if name in DatasetCatalog:
        metadata = MetadataCatalog.get(name)
        if (metadata.get("json_file"), metadata.get("image_root")) == (json_file, image_root):
            return name
        raise ISONetError(f"--dataset {name}: a data set of that name is registered already")
    register(name, json_file, image_root)
    return name
