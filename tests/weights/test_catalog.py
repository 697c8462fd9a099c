"""The catalog: every record consistent with itself, with the contract's names, and with the zoo's configs."""

from __future__ import annotations

import re
import urllib.parse

import open_clip
import pytest
import timm

from mmzoo.config import from_dict, to_dict
from mmzoo.errors import UsageError, ZooError
from mmzoo.spec import HALF, ImageSpec
from mmzoo.weights.catalog import CATALOG, LAYOUTS, Record, find, records, tags
from mmzoo.weights.maps import LAYOUTS as TABLES
from mmzoo.zoo import FAMILIES, MODELS, get_config

# the contract's names, also of the families that the zoo does not build yet
NAMES = {
    *(f"vit-{size}-224" for size in ("ti16", "s16", "b16", "b32", "l16", "l32", "h14")),
    *(f"vit-{size}-384" for size in ("ti16", "s16", "b16", "b32", "l16", "l32")),
    *(f"clip-vit-{size}" for size in ("b32", "b16", "l14", "l14-336")),
    *(f"clip-vit-{size}-laion" for size in ("b32", "b16", "l14", "h14", "g14")),
    *(f"vilt-b32{task}" for task in ("", "-vqa", "-nlvr2")),
    *(f"albef-b16{task}" for task in ("", "-vqa", "-nlvr2", "-ve")),
    *(f"blip-{size}{task}" for size in ("base", "large") for task in ("", "-vqa", "-nlvr2")),
    *(f"blip2-{eye}" for eye in ("vitg", "vitl")),
    *(f"blip2-vitg-{tongue}" for tongue in ("opt2.7b", "opt6.7b", "t5xl", "t5xxl")), "blip2-vitl-t5xl",
}  # fmt: skip
# towers inside ordinary packages (docs/real-weights.md)
CARRIED = {"minilm-l6", "smollm2-135m", "vit-s14-imgfocus"}
NEVER_PUBLISHED = {"blip-large-vqa", "blip-large-nlvr2"}

every = pytest.mark.parametrize("record", CATALOG, ids=lambda record: record.name)


def test_names_are_unique_and_cover_the_contract():
    assert len({record.name for record in CATALOG}) == len(CATALOG)
    assert {record.model for record in CATALOG} == (NAMES - NEVER_PUBLISHED) | CARRIED
    # bert-base is built for whoever brings its file
    assert {model for model in MODELS if "tiny" not in model} <= NAMES | CARRIED | {"bert-base"}


@every
def test_a_record_is_consistent(record):
    assert record.layout in LAYOUTS
    assert record.package is not None or record.layout.split("/")[0] == record.model.split("-")[0]
    assert record.licence.strip()
    assert record.verified in ("real", "synthetic", "no")
    assert [record.url, record.hub, record.package].count(None) == 2
    if record.package is not None:
        assert re.fullmatch(r"[\w-]+==[\d.]+", record.package)
        assert record.model in CARRIED
        assert record.layout in TABLES
        assert record.sha256 is not None
        assert record.source.startswith(f"pkg:{record.file} (pip install")
    elif record.url is not None:
        parts = urllib.parse.urlsplit(record.url)
        assert parts.scheme == "https"
        assert parts.hostname
        assert parts.path.endswith(f"/{record.file}")
        assert record.revision is None
        assert record.also == ()
    else:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", record.hub)
        assert record.revision == "main" or re.fullmatch(r"[0-9a-f]{40}", record.revision)
    assert record.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", record.sha256)
    assert record.size is None or record.size > 10**6
    assert record.size is None or record.sha256 is not None
    names = (record.file, *record.also, *record.beside)
    assert len(set(names)) == len(names)
    folders = "/" if record.package is not None else ""
    assert all(re.fullmatch(rf"[\w.+{folders}-]+", name) for name in names)
    for number in record.numbers:
        assert number.what
        assert number.source
        assert 0 < number.value < 200
    assert len(set(record.numbers)) == len(record.numbers)
    assert set(record.needs) <= {other.name for other in CATALOG}


@every
def test_the_preprocessing_is_said_only_where_it_differs(record):
    if record.model in MODELS and record.image is not None and not record.layout.endswith("/transformers"):
        assert record.image != get_config(record.model).image
    if record.model in MODELS and MODELS[record.model].image_size is not None:
        config = from_dict(type(get_config(record.model)), record.applied(to_dict(get_config(record.model))))
        assert config.image.size == config.vision.image_size, "what the processor makes, the tower reads"


@every
def test_settings_are_fields_of_the_config(record):
    if record.model not in MODELS:
        return
    cls = type(get_config(record.model))
    config = from_dict(cls, record.applied(to_dict(get_config(record.model))))
    if record.image is not None:
        assert config.image == record.image
    if record.layout.startswith("clip/"):  # no file tells the activation
        assert (
            record.settings["vision.act"]
            == record.settings["text.act"]
            == config.vision.act
            == config.text.act
        )


def test_a_setting_that_the_config_lacks_is_an_error():
    record = Record("clip-vit-b32", "x", "clip/openai", "f", "MIT", settings={"vision.actt": "gelu"})
    with pytest.raises(
        ZooError, match=r"the catalog's clip-vit-b32.x sets vision.actt, which clip-vit-b32 has not"
    ):
        record.applied(to_dict(get_config("clip-vit-b32")))
    plain = to_dict(get_config("clip-vit-b32"))
    changed = Record(
        "clip-vit-b32", "x", "clip/openai", "f", "MIT", settings={"vision.act": "gelu"}, image=ImageSpec(240)
    )
    assert changed.applied(plain)["vision"]["act"] == "gelu"
    assert changed.applied(plain)["image"]["size"] == 240
    assert plain == to_dict(get_config("clip-vit-b32"))


def test_the_layouts_are_those_that_can_be_read():
    mine = {layout for layout in LAYOUTS if layout.split("/")[0] in FAMILIES}
    assert mine <= {layout if isinstance(layout, str) else layout.name for layout in TABLES}


def test_what_is_verified():
    """Nothing was downloaded: real are the packages' weights, synthetic what test_published_sizes.py loads."""
    assert {record.model for record in CATALOG if record.verified == "real"} == CARRIED
    proven = {record.model for record in CATALOG if record.verified == "synthetic"}
    assert proven == {"vit-b16-224", "clip-vit-b32", "clip-vit-b32-laion"}
    assert find("clip-vit-b32", "openai-hf").verified == "synthetic"
    assert find("clip-vit-b32", "openai").verified == "no"  # an archive like OpenAI's, not by OpenAI's code
    assert find("vit-b16-224", "in21k-hf").verified == "no"


def test_finding():
    assert find("clip-vit-b32", "openai").sha256.startswith("40d36571")
    assert find("clip-vit-b32", "openai").url.endswith("/40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt")  # fmt: skip # noqa: E501
    assert tags("clip-vit-b32")[0] == "openai"
    assert tags("clip-tiny") == []
    assert {record.model for record in records("blip-*")} == NAMES & {
        r.model for r in CATALOG if r.model.startswith("blip-")
    }
    assert [record.tag for record in records("vilt-b32-vqa.*")] == tags("vilt-b32-vqa")
    assert records("nothing*") == []
    assert len(records()) == len(CATALOG)


def test_a_tag_that_does_not_exist_is_an_error_with_those_that_do():
    with pytest.raises(
        UsageError,
        match=r"clip-vit-l14-336 has no weights 'opnai'. Did you mean openai.* There are: openai, ",
    ):
        find("clip-vit-l14-336", "opnai")
    with pytest.raises(
        UsageError,
        match=r"no weights are published for 'blip-large-vqa'. Did you mean .*blip-base-vqa.*Give a path",
    ):
        find("blip-large-vqa", "vqav2")
    with pytest.raises(UsageError, match="no weights are published for 'clip-tiny'"):
        find("clip-tiny", "openai")


# --- against the libraries that publish them ----------------------------------------------------------------------

ARCHITECTURES = {
    "clip-vit-b32": "ViT-B-32", "clip-vit-b16": "ViT-B-16", "clip-vit-l14": "ViT-L-14",
    "clip-vit-l14-336": "ViT-L-14-336",
    "clip-vit-b32-laion": "ViT-B-32", "clip-vit-b16-laion": "ViT-B-16", "clip-vit-l14-laion": "ViT-L-14",
    "clip-vit-h14-laion": "ViT-H-14", "clip-vit-g14-laion": "ViT-g-14",
}  # fmt: skip


@pytest.mark.parametrize(
    "record",
    [r for r in CATALOG if r.layout in ("clip/open_clip", "clip/openai")],
    ids=lambda record: record.name,
)
def test_clip_records_are_as_open_clip_has_them(record):
    tag = record.tag.removesuffix("-timm")
    theirs = open_clip.get_pretrained_cfg(ARCHITECTURES[record.model], tag)
    if record.hub:
        assert theirs["hf_hub"].rstrip("/") == record.hub
    else:
        assert theirs["url"] == record.url
    assert (record.settings["vision.act"] == "quick_gelu") is bool(theirs.get("quick_gelu"))
    image = record.image or get_config(record.model).image
    assert (image.mean, image.std) == (theirs["mean"], theirs["std"])
    assert image.interpolation == theirs["interpolation"]
    assert image.fit == {"shortest": "crop", "squash": "squash"}[theirs["resize_mode"]]


@pytest.mark.parametrize(
    "record", [r for r in CATALOG if r.layout == "vit/timm"], ids=lambda record: record.name
)
def test_vit_records_are_as_timm_has_them(record):
    theirs = timm.get_pretrained_cfg(record.hub.removeprefix("timm/"))
    assert theirs.hf_hub_id.startswith("timm/")
    assert theirs.license.casefold() == record.licence.casefold()
    plain = record.applied(to_dict(get_config(record.model)))
    assert plain["classes"] == theirs.num_classes
    image = plain["image"]
    assert (tuple(image["mean"]), tuple(image["std"])) == (theirs.mean, theirs.std)
    assert (3, image["size"], image["size"]) == theirs.input_size
    assert (image["crop_pct"], image["interpolation"]) == (theirs.crop_pct, theirs.interpolation)
    assert theirs.mean == HALF or record.tag == "dino"
