"""What is known about a field: how its pictures and captions are treated, asked about and learned from."""

from hf_clip_domain.domains.domain import AugmentPolicy, Domain, ImagePolicy, Rewrite, TextPolicy
from hf_clip_domain.domains.loading import available_domains, load_domain

__all__ = [
    "AugmentPolicy",
    "Domain",
    "ImagePolicy",
    "Rewrite",
    "TextPolicy",
    "available_domains",
    "load_domain",
]
