"""A corpus of any size as embeddings on disk: read in ranges of rows, embedded, and written shard by shard."""

from hf_clip_domain.corpus.folder import ShardFolder
from hf_clip_domain.corpus.rows import Corpus
from hf_clip_domain.corpus.shards import embed_shard

__all__ = ["Corpus", "ShardFolder", "embed_shard"]
