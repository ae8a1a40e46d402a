"""The networks: vision encoder, Q-Former, classifier, Hopfield memory, decoder, report generator."""

from amrg.models.cross_attention import CrossAttention
from amrg.models.hopfield import HopfieldMemory

__all__ = ["CrossAttention", "HopfieldMemory"]
