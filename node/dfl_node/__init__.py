"""The peer: finds others, trains with them, stores what was made, and claims what was earned."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("dfl")
except PackageNotFoundError:  # run from a bare checkout
    __version__ = "0+unknown"
