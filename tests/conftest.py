import os

import pytest
import torch
from support import forget_loggers

torch.set_num_threads(1)  # the tests run in parallel processes
torch.set_flush_denormal(True)  # as in training


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from isonet_det.data import register_shapes
    from isonet_det.data.shapes import SPLITS

    if "shapes_tiny" in SPLITS:
        return  # the self-test's tests, inside of a test that goes on with its own
    cache = tmp_path_factory.mktemp("cache")
    os.environ["ISONET_DET_CACHE"] = str(cache / "shapes")
    os.environ["FVCORE_CACHE"] = str(cache / "weights")
    for name in SPLITS:  # registered at import, for the user's own cache
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)
    # A set that evaluates in a moment.
    SPLITS["shapes_tiny"] = (3, 2)
    register_shapes()


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _loggers():
    yield
    forget_loggers()


def pytest_addoption(parser):
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.addoption("--device", default=default, help="that tests/device runs on")


@pytest.fixture(scope="session")
def device(request):
    return torch.empty(0, device=request.config.getoption("--device")).device


@pytest.fixture(scope="session")
def few_shapes(tmp_path_factory):
    """The --dataset argument of a COCO-format set of eight drawn images."""
    from isonet_det.data import render_shapes

    folder = tmp_path_factory.mktemp("few") / "set"
    render_shapes(folder, 8, 3)
    return f"few={folder}/annotations.json:{folder}/images"
