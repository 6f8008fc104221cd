import pytest
from steps import exact_products


def pytest_generate_tests(metafunc):
    if "half" in metafunc.fixturenames:
        on_cpu = metafunc.config.getoption("--device").startswith("cpu")
        metafunc.parametrize("half", ["bfloat16"] if on_cpu else ["bfloat16", "float16"])


@pytest.fixture(autouse=True)
def _exact():
    with exact_products():
        yield


@pytest.fixture
def at_most(record_property):
    """A comparison that the self-test's report shows; NaN fails."""

    def check(error, limit):
        record_property("result", f"{error:.2g}, at most {limit:g}")
        assert error <= limit

    return check
