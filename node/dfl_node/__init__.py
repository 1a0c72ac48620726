"""The peer: finds others, trains with them, stores what was made, and claims what was earned."""

__version__: str


def __getattr__(name: str) -> str:
    """`__version__`, read when asked for: importlib.metadata would be half of what `--help` costs."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("dfl")
    except PackageNotFoundError:  # run from a bare checkout
        return "0+unknown"
