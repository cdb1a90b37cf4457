"""A reader of HTML that fails where it is not well-formed."""

from __future__ import annotations

from html.parser import HTMLParser


class Closed(HTMLParser):
    """Fails where an element is not closed in order, and remembers what there is."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        """Opens it."""
        self.handle_startendtag(tag, attrs)
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        """Remembers it."""
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        """Closes the last."""
        assert self.open.pop() == tag

    def handle_data(self, data):
        """Remembers what can be read."""
        if self.open[-1:] != ["style"]:
            self.text.append(data)
