"""Which exceptions are messages for a person, and which are our own mistakes."""

from __future__ import annotations

_INSTALL = {
    "torch": "pip install torch (https://pytorch.org has the build for your GPU)",
    "onnx": "pip install onnx onnxscript",
    "onnxscript": "pip install onnx onnxscript",
    "rich": "pip install rich",
    "matplotlib": "pip install matplotlib",
    "tqdm": "pip install tqdm",
    "yaml": "pip install pyyaml",
    "cv2": "pip install opencv-python-headless",
}


class UsageError(Exception):
    """The command line asks for something that makes no sense."""


def describe_error(error: Exception) -> str | None:
    """One message for the user, or None for an exception that deserves its traceback.

    The project's own errors are ValueErrors and RuntimeErrors of its modules; plain ones raised
    elsewhere are bugs.
    """
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").split(".")[0]
        if package not in _INSTALL:
            return None
        return f"this needs {package}, which is not installed: {_INSTALL[package]}"
    if isinstance(error, UsageError):
        return str(error)
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror or error}"
    if type(error).__module__.startswith("ostrack_ros."):
        return str(error)
    return None
