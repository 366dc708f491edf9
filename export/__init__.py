"""Networks for other machines: graphs of ordinary operators, and neuromorphic ones."""

from .exporting import FORMATS as FORMATS, export as export, is_export as is_export
