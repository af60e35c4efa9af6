"""Entry point of `python -m fada_deploy`, the same as `fada`; torchrun needs a module."""

from fada_deploy.cli import main

if __name__ == "__main__":
    main()
