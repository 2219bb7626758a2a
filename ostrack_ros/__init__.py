"""OSTrack for ROS 2: one box in, a stream of boxes with calibrated confidence out."""

__version__ = "0.1.0"
