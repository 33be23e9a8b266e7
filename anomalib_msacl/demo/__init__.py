"""The command ``demo``: a page in the browser that shows what a model says of an image.

Score, label and map are those of ``anomalib-msacl screen``. The page needs the extra ``demo``.
"""
