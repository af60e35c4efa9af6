"""`python -m fada_deploy` is `fada`; torchrun needs a module to start."""

from fada_deploy.cli import main

if __name__ == "__main__":
    main()
