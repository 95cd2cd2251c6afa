"""`python -m llmtrain`, also what torchrun starts."""

from llmtrain.cli.app import main

if __name__ == "__main__":
    main()
