"""hf_hub:USER/NAME, folders of transformers' layouts and open_clip: the same features as their own packages compute."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from core.protocols import UserError
from helper.networks.headless import load_teacher
from helper.networks.load import load_network, published
from models import _hub, model_dict
from models._hub import folder_spec, hub_spec
from tests.support import hub

SHAPES = {"image": (3, 32, 32)}


@pytest.fixture(scope="module")
def packages():
    pytest.importorskip("timm", reason="needs timm, of requirements-extra.txt")
    pytest.importorskip("safetensors", reason="needs safetensors, of requirements-extra.txt")
    return pytest.importorskip("transformers", reason="needs transformers, of requirements-extra.txt")


@pytest.mark.parametrize(
    ("kind", "prefix"),
    [
        ("vit", ""),
        ("dinov2", ""),
        ("dinov2_with_registers", ""),
        ("siglip_vision_model", ""),
        ("siglip_vision_model", "vision_model."),
    ],
)
def test_a_folder_of_transformers_gives_the_features_it_gives_there(packages, kind, prefix, tmp_path):
    torch.manual_seed(0)
    theirs, reads = hub.made(kind)
    for p in theirs.parameters():  # tokens and scales that start at zero or one would hide a wrong place
        nn.init.normal_(p, std=0.2)
    folder = hub.saved(theirs, tmp_path / "net", prefix)
    network = load_teacher(folder, None, 10, SHAPES)
    assert network.spec.headless and network.spec.name == "hf:net"
    x = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (network.spec.mean, network.spec.std))
    with torch.no_grad():
        out = theirs.eval()((x - mean) / std)
        ours = network.tapped(("pooled", "patches")).eval()({"image": x})
    want = out.last_hidden_state[:, 0] if reads == "class" else out.pooler_output
    assert torch.allclose(ours["pooled"], want, atol=1e-5)
    prefix_tokens = out.last_hidden_state.shape[1] - 16
    assert torch.allclose(ours["patches"], out.last_hidden_state[:, prefix_tokens:], atol=1e-5)


def test_a_vits_classifier_comes_along_where_it_fits(packages, tmp_path):
    torch.manual_seed(0)
    theirs = packages.ViTForImageClassification(packages.ViTConfig(**hub.SMALL, intermediate_size=64, num_labels=10))
    folder = hub.saved(theirs, tmp_path / "net")
    network = load_network(folder / "model.safetensors", None, 10, SHAPES)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        want = theirs.eval()(2 * x - 1).logits
        assert torch.allclose(network.tapped().eval()({"image": x})["logits"], want, atol=1e-5)
    assert load_teacher(folder, None, 7, SHAPES).lacks == "it was trained for 10 classes, but the data set has 7"


def test_the_normalisation_is_what_the_files_say(packages, tmp_path):
    folder = hub.saved(hub.made("dinov2")[0], tmp_path / "net")
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1] * 3, "resample": 2}))
    spec = folder_spec(str(folder))
    assert (spec.mean, spec.published.interpolation) == ((0.1, 0.1, 0.1), "bilinear")


def test_checksums_tell_weights_and_settings_apart(packages, tmp_path):
    marks = set()
    for i in (0, 0, 1):
        torch.manual_seed(i)
        folder = hub.saved(hub.made("vit")[0], tmp_path / f"n{len(marks)}{i}" / "net")
        marks.add(load_teacher(folder, None, 10, SHAPES).checksum)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"patch_size": 8', '"patch_size": 8, "note": 1'))
    folder_spec.cache_clear()
    assert len(marks) == 2 and load_teacher(folder, None, 10, SHAPES).checksum not in marks


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "net is a bert of transformers; only dinov2, .* can be read"),
        ({"use_swiglu_ffn": True}, "has gated layers"),
        ({"num_hidden_layers": 3}, "the weights have no encoder.layer.2"),
        ({"hidden_size": 16}, "do not fit its config.json: .* are missing or of another shape"),
        ({"hidden_size": None}, "lacks hidden_size"),
    ],
)
def test_files_that_do_not_fit_are_refused_in_one_sentence(packages, change, message, tmp_path):
    folder = hub.saved(hub.made("dinov2")[0], tmp_path / "net")
    config = {**json.loads((folder / "config.json").read_text()), **change}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    with pytest.raises(UserError, match=message):
        load_teacher(folder, None, 10, SHAPES)


def test_a_folder_without_weights_and_a_torn_file(packages, tmp_path):
    folder = hub.saved(hub.made("vit")[0], tmp_path / "net")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="truncated or not a file of weights"):
        load_teacher(folder, None, 10, SHAPES)
    weights.unlink()
    folder_spec.cache_clear()
    with pytest.raises(UserError, match="holds a config.json but no weights: put model.safetensors"):
        load_teacher(folder, None, 10, SHAPES)


@pytest.fixture
def cached(packages, tmp_path, monkeypatch):
    """A cache of the Hub that holds one headless timm network and one of transformers, and no way to a server."""
    import timm
    from huggingface_hub import constants

    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=0)
    config = {"architecture": "test_vit", "num_classes": 0, "pretrained_cfg": {"input_size": [3, 160, 160]}}
    hub.fill(tmp_path, "someone/small", model.state_dict(), config)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub_spec.cache_clear()
    yield model
    hub_spec.cache_clear()


def test_a_network_of_the_hub_from_the_cache(cached):
    network = load_teacher("hf_hub:someone/small", None, 10, SHAPES)
    assert network.spec.headless and network.checksum.startswith(f"hf_hub:someone/small@{hub.COMMIT} ")
    x = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (network.spec.mean, network.spec.std))
    with torch.no_grad():
        pooled = network.tapped(("pooled",)).eval()({"image": x})["pooled"]
    assert pooled.shape == (2, 64) and not torch.equal(pooled[0], pooled[1])
    with torch.no_grad():
        big = torch.rand(1, 3, 160, 160)
        ours = network.tapped(("pooled",)).eval()({"image": big})["pooled"]
        assert torch.allclose(ours, cached.eval()((big - mean) / std), atol=1e-5)
    pinned = load_teacher(f"hf_hub:someone/small@{hub.COMMIT}", None, 10, SHAPES)
    assert pinned.checksum == network.checksum


def test_a_name_that_is_not_in_the_cache_says_where_it_was_sought(cached, tmp_path):
    with pytest.raises(UserError, match=f"cannot read hf_hub:no/where: it is not in the cache {tmp_path}/hub"):
        load_teacher("hf_hub:no/where", None, 10, SHAPES)


def test_open_clip_is_asked_for_only_where_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match="needs the package open_clip_torch: pip install"):
        load_teacher("open_clip:ViT-B-32/openai", None, 10, SHAPES)
    visual = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 6))
    activations = []

    def create_model(name, pretrained, force_quick_gelu):
        activations.append(force_quick_gelu)
        return SimpleNamespace(visual=visual)

    monkeypatch.setitem(
        sys.modules,
        "open_clip",
        SimpleNamespace(
            list_pretrained=lambda: [("tiny", "mine")],
            get_model_config=lambda name: {"embed_dim": 6, "vision_cfg": {"image_size": 32}},
            get_pretrained_cfg=lambda name, tag: {
                "mean": (0.5,) * 3,
                "std": (0.5,) * 3,
                "quick_gelu": True,
                "interpolation": "bilinear",
            },
            create_model=create_model,
            OPENAI_DATASET_MEAN=(0.4,) * 3,
            OPENAI_DATASET_STD=(0.3,) * 3,
        ),
    )
    network = load_teacher("open_clip:tiny/mine", None, 10, SHAPES)
    assert network.spec.headless and network.spec.published.interpolation == "bilinear"
    assert activations and all(activations)  # as the weights were trained
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(network.tapped(("pooled",))({"image": x})["pooled"], visual(2 * x - 1))
    _hub.open_clip_spec.cache_clear()
    with pytest.raises(UserError, match="no weights 'yours' of tiny: it has mine"):
        load_teacher("open_clip:tiny/yours", None, 10, SHAPES)


def test_published_names_and_files(tmp_path):
    assert published("hf_hub:a/b") == "hf_hub:a/b"
    assert published(tmp_path) is None  # a folder without a config.json
    (tmp_path / "config.json").write_text("{}")
    assert published(tmp_path) is None
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    assert published(tmp_path) == f"hf_folder:{tmp_path}"
    assert "hf_hub" in model_dict.resolvers
