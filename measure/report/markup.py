"""HTML as a tree: what is put into it as text stays text, whatever it holds."""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree.ElementTree import Element, tostring

Child = str | Element


def element(tag: str, *children: Child, **attributes: str) -> Element:
    """An element; an attribute's name may end in ``_`` (``class_``), and its other underscores are hyphens (``data_value``)."""
    made = Element(tag, {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()})
    for child in children:
        if isinstance(child, Element):
            made.append(child)
        elif len(made):
            made[-1].tail = (made[-1].tail or "") + child
        else:
            made.text = (made.text or "") + child
    return made


def embedded(text: str) -> Element:
    """JSON for the page's script to read; no text in it can end the element."""
    return element("script", text.replace("<", "\\u003c"), type="application/json")


def html(elements: Iterable[Element]) -> str:
    """The text of elements."""
    return "\n".join(tostring(one, encoding="unicode", method="html") for one in elements)
