"""TextBackbone against transformers' BERT (with cross-attention) and Llama: float64, outputs and gradients."""

from __future__ import annotations

import pytest
import torch
from hand_copy import shake

from mmzoo.layers.cache import KVCache
from mmzoo.towers.text import TextBackbone, bert_text, llama_text

pytestmark = pytest.mark.filterwarnings("ignore")


def _put(target, source):
    with torch.no_grad():
        target.copy_(source)


def _copy_bert(ours: TextBackbone, bert) -> None:
    e = bert.embeddings
    _put(ours.embed.tok.weight, e.word_embeddings.weight)
    _put(ours.embed.pos.weight, e.position_embeddings.weight)
    _put(ours.embed.token_type.weight, e.token_type_embeddings.weight)
    ours.embed.norm.load_state_dict(e.LayerNorm.state_dict())
    for a, b in zip(ours.blocks, bert.encoder.layer, strict=True):
        s = b.attention.self
        _put(a.attn.qkv.weight, torch.cat([s.query.weight, s.key.weight, s.value.weight]))
        _put(a.attn.qkv.bias, torch.cat([s.query.bias, s.key.bias, s.value.bias]))
        a.attn.out.load_state_dict(b.attention.output.dense.state_dict())
        a.attn_norm.load_state_dict(b.attention.output.LayerNorm.state_dict())
        c = b.crossattention.self
        a.cross.q.load_state_dict(c.query.state_dict())
        _put(a.cross.kv.weight, torch.cat([c.key.weight, c.value.weight]))
        _put(a.cross.kv.bias, torch.cat([c.key.bias, c.value.bias]))
        a.cross.out.load_state_dict(b.crossattention.output.dense.state_dict())
        a.cross_norm.load_state_dict(b.crossattention.output.LayerNorm.state_dict())
        a.mlp.fc1.load_state_dict(b.intermediate.dense.state_dict())
        a.mlp.fc2.load_state_dict(b.output.dense.state_dict())
        a.mlp_norm.load_state_dict(b.output.LayerNorm.state_dict())


@pytest.mark.parametrize("causal", [False, True])
def test_bert_with_cross_attention(causal):
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=20, is_decoder=True, add_cross_attention=True, layer_norm_eps=1e-12,
        attn_implementation="eager",
    )  # fmt: skip
    config.is_decoder = True
    bert = shake(BertModel(config, add_pooling_layer=False).double().eval())
    ours = TextBackbone(
        bert_text(
            vocab=50, context=20, width=32, depth=3, heads=4, hidden=64, cross_layers=(0, 1, 2), cross_width=32
        )
    ).double().eval()  # fmt: skip
    _copy_bert(ours, bert)
    ids = torch.randint(1, 50, (3, 9))  # transformers gives id 0, its padding, no gradient
    keep = torch.arange(9) < torch.tensor([9, 4, 6])[:, None]
    image = torch.randn(3, 7, 32, dtype=torch.float64)
    mask = keep.long()
    if not causal:  # a 4-D additive mask is taken as it is, so the decoder sees both ways
        mask = torch.zeros(3, 1, 9, 9, dtype=torch.float64).masked_fill(~keep[:, None, None, :], -torch.inf)
    theirs = bert(
        ids,
        attention_mask=mask,
        encoder_hidden_states=image,
        encoder_attention_mask=torch.ones(3, 7).long(),
        use_cache=False,
    ).last_hidden_state
    out = ours(ids, keep=keep, causal=causal, context=image)
    torch.testing.assert_close(out.tokens[keep], theirs[keep], rtol=1e-9, atol=1e-9)
    weight = torch.randn(3, 9, 32, dtype=torch.float64) * keep[..., None]
    (out.tokens * weight).sum().backward()
    (theirs * weight).sum().backward()
    torch.testing.assert_close(
        ours.embed.tok.weight.grad, bert.embeddings.word_embeddings.weight.grad, rtol=1e-9, atol=1e-9
    )
    torch.testing.assert_close(
        ours.blocks[1].cross.q.weight.grad, bert.encoder.layer[1].crossattention.self.query.weight.grad,
        rtol=1e-9, atol=1e-9,
    )  # fmt: skip


def test_llama():
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    llama = LlamaModel(
        LlamaConfig(
            vocab_size=50, hidden_size=48, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
            intermediate_size=80, rms_norm_eps=1e-5, max_position_embeddings=64,
        )
    )  # fmt: skip
    # transformers' RMSNorm goes down to float32 whatever it is given; torch's own keeps float64
    for parent in list(llama.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ == "LlamaRMSNorm":
                setattr(parent, name, torch.nn.RMSNorm(48, eps=1e-5))
    llama = shake(llama.double().eval())
    ours = TextBackbone(
        llama_text(vocab=50, context=64, width=48, depth=3, heads=6, kv_heads=2, hidden=80)
    ).double().eval()  # fmt: skip
    _put(ours.embed.tok.weight, llama.embed_tokens.weight)
    for a, b in zip(ours.blocks, llama.layers, strict=True):
        s = b.self_attn
        _put(a.attn.qkv.weight, torch.cat([s.q_proj.weight, s.k_proj.weight, s.v_proj.weight]))
        _put(a.attn.out.weight, s.o_proj.weight)
        _put(a.attn_norm.weight, b.input_layernorm.weight)
        _put(a.mlp.fc1.weight, torch.cat([b.mlp.gate_proj.weight, b.mlp.up_proj.weight]))
        _put(a.mlp.fc2.weight, b.mlp.down_proj.weight)
        _put(a.mlp_norm.weight, b.post_attention_layernorm.weight)
    _put(ours.norm.weight, llama.norm.weight)
    ids = torch.randint(0, 50, (2, 11))
    theirs = llama(ids, use_cache=False).last_hidden_state
    out = ours(ids).tokens
    torch.testing.assert_close(out, theirs, rtol=1e-9, atol=1e-9)
    out.square().mean().backward()
    theirs.square().mean().backward()
    torch.testing.assert_close(
        ours.embed.tok.weight.grad, llama.embed_tokens.weight.grad, rtol=1e-9, atol=1e-9
    )

    with torch.no_grad():  # token by token through the caller's cache
        cache = KVCache(3)
        steps = [ours(ids[:, :4], cache=cache).tokens]
        steps += [ours(ids[:, i : i + 1], cache=cache).tokens for i in range(4, 11)]
    torch.testing.assert_close(torch.cat(steps, 1), theirs, rtol=1e-9, atol=1e-9)
