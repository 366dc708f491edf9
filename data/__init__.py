"""Images for calibration and scoring, read by timm's data sets and preprocessed as the model's configuration says."""

from .events import EventSource as EventSource, is_events as is_events, open_events as open_events
from .images import Sample as Sample, batches as batches, digest as digest, prepared as prepared, sample_of as sample_of
from .loading import (
    Augmentation as Augmentation,
    TrainingLoader as TrainingLoader,
    event_batches as event_batches,
    seed_of as seed_of,
    time_first as time_first,
    training_events as training_events,
    training_images as training_images,
    unlabelled_images as unlabelled_images,
)
from .opening import open_images as open_images
from .pictures import UnreadableError as UnreadableError
from .sources import ImageSource as ImageSource, array_source as array_source
from .subset import balanced_order as balanced_order, choose as choose, readable as readable
