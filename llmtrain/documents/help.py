"""The document of `llmtrain help`."""

from __future__ import annotations

from llmtrain.documents.base import Document, Part, Text, key, optional


class Topic(Part):
    """A page of the documentation."""

    name: Text = key("what `llmtrain help NAME` takes")
    title: Text = key("its heading")


class Help(Document):
    """`llmtrain help`."""

    topics: list[Topic] = key("every page, the guides first")
    text: Text = optional("the page in Markdown; missing where no topic was named")
