import pytest
from detectron2.config import get_cfg as stock_cfg
from detectron2.modeling import build_model

from isonet_det import IsonetError, add_isonet_config, get_cfg, model_zoo
from isonet_det.config import configs_dir, find_config_file, merge_config_file, merge_options

CONFIGS = model_zoo.list()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_builds_with_imagenet_pixels(name):
    cfg = model_zoo.get_config(name)
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    assert cfg.INPUT.FORMAT == "RGB"
    assert cfg.MODEL.PIXEL_MEAN == [123.675, 116.28, 103.53]
    assert cfg.MODEL.PIXEL_STD == [58.395, 57.12, 57.375]
    assert any(hasattr(m, "gram_stride") for m in model.modules()) or "resnet" in name
    scheme, _, entry = cfg.MODEL.WEIGHTS.partition("://")
    if scheme == "isonet":
        record = model_zoo.get_record(entry)
        assert record.depth == cfg.MODEL.RESNETS.DEPTH
        assert (record.network == "R-ISONet") == cfg.MODEL.ISONET.RESIDUAL


def test_the_ready_configs_are_all_listed():
    assert {f"mask_rcnn_risonet{d}_fpn.yaml" for d in (18, 34, 50, 101)} <= set(CONFIGS)
    assert "quickstart.yaml" in CONFIGS


def test_detectron2s_defaults_stay_untouched():
    get_cfg()
    assert "ISONET" not in stock_cfg().MODEL


def test_keys_can_be_added_twice_and_keep_their_values():
    cfg = stock_cfg()
    add_isonet_config(cfg)
    cfg.MODEL.ISONET.ORTHO_COEFF = 3e-4
    add_isonet_config(cfg)
    assert cfg.MODEL.ISONET.ORTHO_COEFF == 3e-4


def test_fpn_recipe_is_detectron2s_but_for_the_backbone():
    from detectron2 import model_zoo as stock_zoo

    stock = stock_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
    ours = model_zoo.get_config("mask_rcnn_risonet50_fpn.yaml")
    different = set()

    def compare(a, b, prefix=""):
        for key in a:
            if hasattr(a[key], "items"):
                compare(a[key], b[key], f"{prefix}{key}.")
            elif a[key] != b[key]:
                different.add(prefix + key)

    compare(stock, ours)
    assert different == {
        "MODEL.BACKBONE.NAME",
        "MODEL.PIXEL_MEAN",
        "MODEL.PIXEL_STD",
        "MODEL.WEIGHTS",
        "INPUT.FORMAT",
        "OUTPUT_DIR",
    }


def test_options_take_numbers_of_either_kind():
    cfg = get_cfg()
    merge_options(cfg, ["SOLVER.BASE_LR", "1", "MODEL.ISONET.ORTHO_COEFF", "1e-3"])
    assert cfg.SOLVER.BASE_LR == 1.0 and cfg.MODEL.ISONET.ORTHO_COEFF == 1e-3


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("MODEL: {ISONET: {RESIDUALS: true}}", "did you mean MODEL.ISONET.RESIDUAL?"),
        ("MODEL: {RESNET: {DEPTH: 50}}", "did you mean MODEL.RESNETS.DEPTH?"),
        ("MODEL: {RESNETS: {DEPTH: fifty}}", "has to be a int"),
        ("MODEL: 3", "MODEL is a section"),
        ("MODEL: {RESNETS: [", "no plain yaml"),
        ("- a\n- b", "no yaml mapping"),
        ("", "no yaml mapping"),
        ("_BASE_: nowhere.yaml", "nowhere.yaml is not there"),
        ("_BASE_: bad.yaml", "lead back to it"),
        ("X: !!python/object/apply:os.system ['touch ran']", "no plain yaml"),
        ("\x00\x01", "no plain yaml"),
    ],
)
def test_a_bad_config_file_is_one_line(tmp_path, monkeypatch, text, named):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(IsonetError) as error:
        merge_config_file(get_cfg(), str(path))
    assert named in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["SOLVER.BASE_LR"], "no partner"),
        (["SOLVER.BASE_LRR", "1"], "SOLVER.BASE_LR?"),
        (["SOLVER.MAX_ITER", "many"], "'many'"),
        (["MODEL.ISONET.RESIDUAL", "yes"], "bool"),
    ],
)
def test_bad_options_are_one_line(options, named):
    with pytest.raises(IsonetError) as error:
        merge_options(get_cfg(), options)
    assert named in str(error.value)


def test_ready_configs_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wanted = str(configs_dir() / "quickstart.yaml")
    assert find_config_file("configs/quickstart.yaml") == wanted
    assert find_config_file("quickstart.yaml") == wanted
    with pytest.raises(IsonetError, match=r"mask_rcnn_risonet50_fpn.yaml\?"):
        find_config_file("mask_rcnn_risonet50_fnp.yaml")
