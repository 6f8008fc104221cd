"""Whatever comes in, the answer is a working object or a one-line error."""

import copy
import io
import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isonet_det import ISONet, ISONetError, get_cfg, load_backbone
from isonet_det.config import configs_dir, merge_config_file, merge_options
from isonet_det.data import render_shapes
from isonet_det.data.regular import regularize
from isonet_det.weights.names import parse_checkpoint, read_weights
from isonet_det.weights.zoo import write_weights

FUZZ = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
KEYS = ["MODEL.RESNETS.DEPTH", "SOLVER.STEPS", "MODEL.ISONET.INIT", "INPUT.FORMAT", "X.Y", "MODEL"]
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_subnormal=False)
values = st.recursive(
    scalars | st.text(max_size=8),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3),
)


def one_line(call):
    try:
        return call()
    except ISONetError as error:
        assert str(error) and "\n" not in str(error)
        return None


@FUZZ
@given(text=st.text(max_size=60), cut=st.integers(0, 3000), extra=st.binary(max_size=6))
def test_config_files(tmp_path, text, cut, extra):
    ready = (configs_dir() / "Base-RCNN-FPN.yaml").read_bytes()
    for content in (text.encode("utf-8", "surrogatepass"), ready[:cut] + extra + ready[cut:]):
        path = tmp_path / "c.yaml"
        path.write_bytes(content)
        one_line(lambda path=path: merge_config_file(get_cfg(), str(path)))


@FUZZ
@given(key=st.sampled_from(KEYS) | st.text(max_size=12), value=values)
def test_config_keys_and_values(tmp_path, key, value):
    one_line(lambda: merge_options(get_cfg(), [key, str(value)]))
    node = value
    for part in reversed(key.split(".")):
        node = {part: node}
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps(node))
    one_line(lambda: merge_config_file(get_cfg(), str(path)))


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco") / "set"
    render_shapes(folder, 6, 1)
    return json.loads((folder / "annotations.json").read_text())


@FUZZ
@given(data=st.data(), value=values)
def test_coco_jsons(coco, data, value):
    """One value somewhere in the file is replaced or removed."""
    content = copy.deepcopy(coco)
    node, key = content, data.draw(st.sampled_from(sorted(content)))
    while isinstance(node[key], (dict, list)) and node[key] and data.draw(st.booleans()):
        node = node[key]
        keys = sorted(node) if isinstance(node, dict) else range(len(node))
        key = data.draw(st.sampled_from(keys))
    if data.draw(st.booleans()):
        node[key] = value
    else:
        del node[key]
    if form := one_line(lambda: regularize(content, "fuzzed.json")):
        problem = form[1].fatal
        assert "\n" not in problem
        if not problem:
            json.dumps(form[0])


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    state = ISONet(18, out_features=["stem"]).state_dict()
    out = []
    for legacy in (True, False):
        f = io.BytesIO()
        torch.save({"model": state}, f, _use_new_zipfile_serialization=not legacy)
        out.append(f.getvalue())
    for suffix in (".safetensors", ".pkl"):
        write_weights(parse_checkpoint(dict(state)), folder / f"w{suffix}")
        out.append((folder / f"w{suffix}").read_bytes())
    return out


@FUZZ
@given(
    kind=st.integers(0, 3), place=st.floats(0, 1, allow_subnormal=False), near_start=st.booleans(),
    change=st.binary(min_size=1, max_size=8), cut=st.booleans(),
)  # fmt: skip
def test_checkpoint_files(tmp_path, checkpoints, kind, place, near_start, change, cut):
    whole = checkpoints[kind]
    start = int(place * (min(len(whole), 600) if near_start else len(whole)))
    path = tmp_path / "w"
    path.write_bytes(whole[:start] + (b"" if cut else change + whole[start + len(change) :]))
    net = ISONet(18, out_features=["stem"])
    one_line(lambda: load_backbone(net, read_weights(path)))
