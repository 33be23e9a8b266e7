"""Draw the strip of the front page from a run: image, true lesion, and the map before and after.

    python scripts/strip.py results/Patchcore/phantom_fundus/latest docs/images/strip.png

The images are not chosen by hand: of the abnormal test images in the order of their scores, from the highest, those
at a tenth and at a third.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from anomalib_msacl.comparison.outcome import Outcome
from anomalib_msacl.report.findings import Findings, gather
from anomalib_msacl.report.pictures import SIDE, Scale, image_picture, map_picture

PLACES, GAP, LABEL = (1 / 10, 1 / 3), 6, 24
TITLES = ("image", "true lesion", "map before", "map after")


def pictures(found: Findings, row: int) -> list[Image.Image]:
    """Return the four pictures of a test image."""
    before, after = found.before, found.after
    if before is None or after is None or found.images is None:
        raise SystemExit("; ".join(found.missing.values()))
    image: Tensor = found.images(row)
    mask = None if after.masks is None else after.masks[row]
    return [image_picture(image), image_picture(image, mask), shown_map(before, row), shown_map(after, row)]


def shown_map(outcome: Outcome, row: int) -> Image.Image:
    """Return a map on the scale of its detector."""
    if outcome.maps is None:
        raise SystemExit("the detector has no maps")
    return map_picture(outcome.maps[row], Scale.of(outcome))


def main() -> None:
    """Draw the strip."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    found = gather(arguments.run)
    if found.after is None or found.after.label is None:
        raise SystemExit("; ".join(found.missing.values()))
    ill = [row for row in found.after.score.argsort(descending=True).tolist() if found.after.label[row]]
    rows = [ill[int(len(ill) * place)] for place in PLACES]
    columns = len(TITLES)
    sheet = Image.new("RGB", (columns * (SIDE + GAP) - GAP, len(rows) * (SIDE + GAP) - GAP + LABEL), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for place, row in enumerate(rows):
        for number, (title, picture) in enumerate(zip(TITLES, pictures(found, row), strict=True)):
            left = number * (SIDE + GAP)
            sheet.paste(picture, (left, LABEL + place * (SIDE + GAP)))
            pen.text((left + SIDE / 2, LABEL / 2), title, fill="black", font=font, anchor="mm")
    sheet.save(arguments.picture, optimize=True)


if __name__ == "__main__":
    main()
