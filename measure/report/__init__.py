"""A report on converted or trained spiking networks: one HTML page that holds all it shows and needs no network."""

from .artifact import Artifact as Artifact
from .page import report_page as report_page
