"""MSACL pre-training: views, lesions, terms, choice, and the pipeline of the five steps."""

from anomalib_msacl.pretraining.choice import Choice
from anomalib_msacl.pretraining.images import NormalImages
from anomalib_msacl.pretraining.pipeline import Pretraining, pretrain
from anomalib_msacl.pretraining.pretrained import Pretrained
from anomalib_msacl.pretraining.questions import Questions, Score

__all__ = ["Choice", "NormalImages", "Pretrained", "Pretraining", "Questions", "Score", "pretrain"]
