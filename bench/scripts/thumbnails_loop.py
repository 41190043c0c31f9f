"""Make a thumbnail of each photograph in `photos/`, one after the other."""

from pathlib import Path

from PIL import Image

SMALL = Path("small")


def shrink(photo: Path) -> None:
    with Image.open(photo) as image:
        image.thumbnail((256, 256))
        image.save(SMALL / photo.name)


SMALL.mkdir(exist_ok=True)
for photo in Path("photos").glob("*.jpg"):
    try:
        shrink(photo)
    except OSError:
        print(photo.name, "failed")
print(len(list(SMALL.glob("*.jpg"))), "thumbnails")
