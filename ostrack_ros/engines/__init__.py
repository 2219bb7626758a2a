"""Engines that run one OSTrack graph behind one small interface."""
