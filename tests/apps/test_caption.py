"""`mmzoo caption` from Python: what is written, on what it depends, what survives an interruption."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from hand_copy import shake
from PIL import Image

import mmzoo
from mmzoo.apps.caption import caption
from mmzoo.apps.writing import prompt_ids
from mmzoo.data.open import open_source
from mmzoo.errors import UsageError, ZooError
from mmzoo.generation import GenerationConfig, generate


def noise(path, seed):
    pixels = torch.randint(256, (6, 6, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).resize((40 + seed % 3 * 20, 40)).save(path)
    return path


@pytest.fixture(scope="module")
def blip():
    torch.manual_seed(0)
    model = shake(mmzoo.create_model("blip-tiny"), seed=2)
    return model, mmzoo.create_processor(model)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(6):
        noise(folder / f"{i}.png", i)
    return folder


def said(result):
    return {one.image: one.captions for one in result.captions}


def test_captions_are_those_of_the_engine(blip, photos):
    model, processor = blip
    result = caption(blip, [photos], num_captions=2, max_new_tokens=6, repetition_penalty=1.3)
    prompt = processor.texts(["a picture of"]).ids[0, 1:-1]
    settings = GenerationConfig(
        max_new_tokens=6, min_new_tokens=1, beams=3, repetition_penalty=1.3, per_context=2
    )
    assert result.settings == settings
    assert result.prompt == "a picture of "
    assert len(result.captions) == 6
    for one in result.captions:
        pixels = processor.images([Image.open(one.image).convert("RGB")])
        made = generate(model.caption_decoder(pixels), prompt, settings)
        assert list(one.captions) == processor.decode(made.rows)
        means = made.token_scores.sum(1) / made.lengths
        assert list(one.scores) == pytest.approx(means.tolist(), abs=1e-3)
        assert list(one.finished) == made.finished.tolist()
    assert result.tokens == 6 * 2 * 6  # nothing ended by itself
    assert result.seconds > 0
    assert result.broken == []


def test_drawn_captions_depend_on_seed_and_picture_only(blip, photos, tmp_path):
    """Not on the batch, the order, or the name of the file."""
    how = {"sample": True, "num_captions": 2, "max_new_tokens": 5, "top_k": 500, "temperature": 1.2}
    whole = said(caption(blip, [photos], seed=3, **how))
    assert len(set(whole.values())) == 6
    order = [photos / f"{i}.png" for i in (4, 1, 5)]
    assert said(caption(blip, order, seed=3, batch_size=2, **how)) == {str(p): whole[str(p)] for p in order}
    again = tmp_path / "another name.png"
    again.write_bytes((photos / "2.png").read_bytes())
    assert said(caption(blip, [again], seed=3, **how)) == {str(again): whole[str(photos / "2.png")]}
    assert said(caption(blip, [photos], seed=4, **how)) != whole


def test_63_of_64(blip, tmp_path):
    for i in range(64):
        noise(tmp_path / f"{i:02}.png", i % 7)
    (tmp_path / "30.png").write_bytes((tmp_path / "30.png").read_bytes()[:60])
    result = caption(blip, [tmp_path], beams=1, max_new_tokens=2, batch_size=64)
    assert len(result.captions) == 63
    assert [key for key, _ in result.broken] == [str(tmp_path / "30.png")]
    with pytest.raises(ZooError, match=r"none of 1 pictures could be read; the first, .*30\.png"):
        caption(blip, [tmp_path / "30.png"])


def test_an_interrupted_run_goes_on(blip, photos, tmp_path):
    out, how = tmp_path / "said.jsonl", {"max_new_tokens": 4, "batch_size": 2}
    seen = []

    def stop_at_three(one):
        seen.append(one.image)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        caption(blip, [photos], out=out, announce=stop_at_three, **how)
    kept = out.read_text().splitlines()
    assert [json.loads(line)["image"] for line in kept] == [f"photos/{i}.png" for i in range(3)]
    with out.open("a") as file:
        file.write('{"image": "photos/3.png", "capt')  # killed in the middle of a line
    seen = []
    result = caption(blip, [photos], out=out, announce=lambda one: seen.append(one.image), **how)
    assert seen == [str(photos / f"{i}.png") for i in (3, 4, 5)]
    assert result.resumed == 3
    assert said(result) == said(caption(blip, [photos], **how))
    lines = out.read_text().splitlines()
    assert lines[:3] == kept
    assert [json.loads(line)["image"] for line in lines] == [f"photos/{i}.png" for i in range(6)]
    done = caption(blip, [photos], out=out, announce=lambda one: pytest.fail("written twice"), **how)
    assert (done.resumed, done.tokens, said(done)) == (6, 0, said(result))
    assert out.read_text().splitlines() == lines


def test_a_file_holds_captions_of_one_kind(blip, photos, tmp_path):
    out = tmp_path / "said.jsonl"
    caption(blip, [photos / "0.png"], out=out, max_new_tokens=3)
    content = out.read_bytes()
    for change in ({"max_new_tokens": 4}, {"prompt": "a red"}, {"beams": 2}):
        with pytest.raises(UsageError, match=r"said\.jsonl, line 1: made by another model or with other"):
            caption(blip, [photos], out=out, **({"max_new_tokens": 3} | change))
    other = shake(mmzoo.create_model("blip-tiny"), seed=3), blip[1]
    with pytest.raises(UsageError, match="made by another model"):
        caption(other, [photos], out=out, max_new_tokens=3)
    assert out.read_bytes() == content
    for text in ("hello\n", "hello", '{"image": "a.png"}\n', "[1]\n"):
        out.write_text(text)
        with pytest.raises(UsageError, match="line 1: this is no line of such a file"):
            caption(blip, [photos], out=out)
        assert out.read_text() == text
    for name in ("said.txt", "photos"):
        with pytest.raises(UsageError, match=r"ends in \.jsonl"):
            caption(blip, [photos], out=tmp_path / name)
    (tmp_path / "d.jsonl").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        caption(blip, [photos], out=tmp_path / "d.jsonl")


def test_captions_beside_their_pictures_are_a_data_set(blip, photos):
    result = caption(blip, [photos], out=photos / "captions.jsonl", max_new_tokens=4)
    source = open_source(photos)
    assert [source[i].key for i in range(6)] == [f"{i}.png" for i in range(6)]
    assert [source[i].texts for i in range(6)] == [one.captions for one in result.captions]


def test_prompts(blip, photos):
    model, processor = blip
    opened = _opened(blip)
    assert (
        prompt_ids(opened, None) == prompt_ids(opened, "a picture of") == [*_ids(processor, "a picture of")]
    )
    assert prompt_ids(opened, "") == prompt_ids(opened, " \n") == []
    free = caption(blip, [photos / "0.png"], prompt="", max_new_tokens=5)
    pixels = processor.images([Image.open(photos / "0.png").convert("RGB")])
    made = generate(model.caption_decoder(pixels), None, free.settings)
    assert list(free.captions[0].captions) == processor.decode(made.rows)
    with pytest.raises(UsageError, match="the prompt is longer than the 29 tokens that BLIP has room for"):
        caption(blip, [photos], prompt="cat " * 40)
    with pytest.raises(
        UsageError, match="a prompt of 20 tokens and 20 new ones do not fit the decoder's context"
    ):
        caption(blip, [photos], prompt="cat " * 20)


def _ids(processor, text):
    return processor.texts([text]).ids[0, 1:-1].tolist()


def _opened(pair):
    from mmzoo.apps.opening import open_model

    return open_model(pair)


def test_a_decoder_is_all_that_is_asked_for(blip, photos):
    class Writer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = blip[0]

        def caption_decoder(self, images):
            return self.inner.caption_decoder(images)

    found = caption((Writer(), blip[1]), [photos], max_new_tokens=5)
    assert found.prompt == ""  # it has none of its own
    assert said(found) == said(caption(blip, [photos], prompt="", max_new_tokens=5))


def test_a_caption_may_be_empty(blip, photos):
    """A model that ends at once says nothing, which is a caption as good as any."""
    model, processor = blip
    silent = mmzoo.create_model("blip-tiny")
    silent.load_state_dict(model.state_dict())
    with torch.no_grad():
        silent.lm.bias[processor.tokenizer.eos_id] = 100.0
    result = caption((silent, processor), [photos / "0.png"], min_new_tokens=0, html=photos / "page.html")
    assert result.captions[0].captions == ("",)
    assert result.captions[0].finished == (True,)
    assert result.tokens == 1
    assert "(nothing)" in (photos / "page.html").read_text()
    least = caption((silent, processor), [photos / "0.png"], min_new_tokens=3)
    assert result.settings == replace(least.settings, min_new_tokens=0)
    assert least.tokens == 4


def test_the_gallery(blip, photos, tmp_path):
    evil = noise(photos / "<img src=x>.png", 9)
    (photos / "broken.png").write_bytes(b"no picture")
    page = tmp_path / "page"
    result = caption(blip, [photos], num_captions=2, max_new_tokens=4, html=page)
    text = (page / "index.html").read_text()
    assert result.html == page / "index.html"
    assert text.count('<li class="open"') == 7
    assert text.count("data:image/") == 7
    for one in result.captions:
        for written in one.captions:
            assert written.replace("'", "&#39;").replace('"', "&#34;") in text
    assert "how likely a word of the caption was" in text
    assert '<option value="guess">caption, A–Z' in text
    assert "broken.png" in text
    assert evil.name not in text
    assert "&lt;img src=x&gt;" in text
    assert not re.search(r"(src|href)=.?https?:", text)
    assert "mmzoo caption --model BLIP --beams 3 --max-new-tokens 4 --num-captions 2 --html" in text


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"sample": True, "beams": 3}, "--sample draws words and --beams searches"),
        ({"top_p": 0.5}, "--top-p, --top-k and --temperature say how words are drawn: add --sample"),
        ({"temperature": 2.0}, "add --sample"),
        ({"sample": True, "top_p": 1.5}, "top_p=1.5 is a share"),
        ({"num_captions": 4, "beams": 3}, "--num-captions 4 is more than 3 beams can give"),
        ({"num_captions": 0}, "--num-captions 0 is too few"),
        ({"beams": 0}, "beams=0 is too few"),
        ({"beams": 3072}, "3072 beams cannot begin with different words of a vocabulary of 3072"),
        ({"max_new_tokens": 3, "min_new_tokens": 4}, "min_new_tokens=4 is more than max_new_tokens=3"),
        ({"html": "page.png"}, "a page is an .html file"),
        ({"images": []}, "name pictures to describe"),
        ({"images": ["*.nothing"]}, "no file matches"),
    ],
)
def test_settings_that_make_no_sense(how, told, blip, photos):
    with pytest.raises(UsageError, match=re.escape(told)):
        caption(blip, how.pop("images", [photos / "0.png"]), **how)


def test_damaged_weights_are_noticed(blip, photos):
    broken = mmzoo.create_model("blip-tiny")
    broken.lm.bias.data[7] = torch.nan
    for how in ({"beams": 1}, {"beams": 2}, {"sample": True}):
        with pytest.raises(ZooError, match="numbers that are not finite"):
            caption((broken, blip[1]), [photos / "0.png"], **how)
