"""Images for calibration and scoring, read by timm's data sets and preprocessed as the model's configuration says."""

from .images import Sample as Sample, batches as batches, digest as digest, prepared as prepared, sample_of as sample_of
from .sources import ImageSource as ImageSource, array_source as array_source, open_images as open_images
from .subset import balanced_order as balanced_order, choose as choose
