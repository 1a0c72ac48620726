"""`python -m dfl_node`: the same as `dfl-node`."""

from dfl_node.cli import main

if __name__ == "__main__":
    main()
