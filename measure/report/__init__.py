"""A report on converted or trained spiking networks: one HTML page that holds all it shows and needs no network."""

from .documents import Artifact as Artifact, read_artifacts as read_artifacts
from .page import report_page as report_page
