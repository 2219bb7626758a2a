"""The tracker itself: NumPy and OpenCV only."""
