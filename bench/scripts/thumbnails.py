"""Make a thumbnail of each photograph in `photos/`."""

from pathlib import Path

from PIL import Image

from procbus import EventBus, subscribe

SMALL = Path("small")


@subscribe(kind="cpu")
def shrink(photo: Path) -> None:
    with Image.open(photo) as image:
        image.thumbnail((256, 256))
        image.save(SMALL / photo.name)


SMALL.mkdir(exist_ok=True)
with EventBus() as bus:
    for receipt in bus.stream(Path("photos").glob("*.jpg")):
        if receipt.has_failure:
            print(receipt.event.name, "failed")
print(len(list(SMALL.glob("*.jpg"))), "thumbnails")
