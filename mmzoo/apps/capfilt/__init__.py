"""CapFilt (Li et al. 2022, BLIP): caption pictures, judge all texts, keep what fits. See `run`."""

from mmzoo.apps.capfilt.run import CapFilt, capfilt

__all__ = ["CapFilt", "capfilt"]
