"""A page as a browser reads it."""

from html.parser import HTMLParser

VOID = {"meta", "img", "br", "line", "circle", "polyline", "input"}


class Page(HTMLParser):
    """Tags with their attributes, and the text that is shown; every tag that is opened has to be closed."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self._open = [], "", []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += "" if "style" in self._open else data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]
