"""Detectron2's data mapper with errors that name the photo."""

from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import SizeMismatchError

from ..errors import ISONetError
from .photos import unreadable_photo


class NamingDatasetMapper(DatasetMapper):
    """Detectron2's :class:`DatasetMapper`; a photo that cannot be read is named.

    Raises:
        UnreadablePhotoError: when called with a photo that is missing or does not decode.
        ISONetError: a photo has another size than the annotations say.
    """

    def __call__(self, dataset_dict):
        try:
            return super().__call__(dataset_dict)
        except SizeMismatchError as error:
            raise ISONetError(" ".join(str(error).split())) from error
        except (OSError, SyntaxError) as error:
            raise unreadable_photo(dataset_dict["file_name"], error) from error
