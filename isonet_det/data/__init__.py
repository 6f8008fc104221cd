"""Data sets: the built-in shapes, a person's own COCO-format files, and their checks."""

from .checks import check_datasets
from .mapper import NamingDatasetMapper
from .register import register_from_argument
from .shapes import register_shapes, render_shapes

__all__ = [
    "NamingDatasetMapper",
    "check_datasets",
    "register_from_argument",
    "register_shapes",
    "render_shapes",
]
