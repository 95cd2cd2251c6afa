"""How fast llmtrain trains beside what one would use otherwise.

    python -m tests.benchmarks.compare --shape S

Needs a checkout; the Hugging Face systems need the extra `bench`. Under pytest only the tests of
its pure parts run, and nothing is timed.
"""
