"""A person's own COCO-format data from the command line."""

import os

from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances

from ..errors import ISONetError


def register_from_argument(argument: str) -> str:
    """Register ``NAME=annotations.json:image_root`` as a COCO-format data set.

    Returns:
        the data set's name.

    Raises:
        ISONetError: the argument is no such triple, or the name is taken by other files.
    """
    name, equals, paths = argument.partition("=")
    json_file, colon, image_root = paths.rpartition(":")
    if not (name and equals and json_file and colon and image_root):
        raise ISONetError(f"--dataset is NAME=annotations.json:image_root, found {argument!r}")
    json_file, image_root = (os.path.expanduser(p) for p in (json_file, image_root))
    if name in DatasetCatalog:
        from detectron2.data import MetadataCatalog

        known = MetadataCatalog.get(name)
        if (known.get("json_file"), known.get("image_root")) == (json_file, image_root):
            return name
        raise ISONetError(f"--dataset {name}: a data set of that name is registered already")
    register_coco_instances(name, {}, json_file, image_root)
    return name
