"""Writing texts with any `Decoder`: greedy, sampling, beams, diverse beams, contrastive, streamed."""

from mmzoo.generation.config import GenerationConfig
from mmzoo.generation.contrastive import ContrastiveDecoder
from mmzoo.generation.engine import Word, generate, stream
from mmzoo.generation.protocol import Decoder
from mmzoo.generation.written import Generated

__all__ = ["ContrastiveDecoder", "Decoder", "Generated", "GenerationConfig", "Word", "generate", "stream"]
