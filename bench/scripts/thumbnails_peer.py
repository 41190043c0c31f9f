"""Make a thumbnail of each photograph in `photos/`, with ProcessPoolExecutor."""

from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from PIL import Image

SMALL = Path("small")


def shrink(photo: Path) -> None:
    with Image.open(photo) as image:
        image.thumbnail((256, 256))
        image.save(SMALL / photo.name)


if __name__ == "__main__":
    SMALL.mkdir(exist_ok=True)
    with ProcessPoolExecutor() as pool:
        photos = Path("photos").glob("*.jpg")
        futures = {pool.submit(shrink, photo): photo for photo in photos}
        for future in as_completed(futures):
            if future.exception():
                print(futures[future].name, "failed")
    print(len(list(SMALL.glob("*.jpg"))), "thumbnails")
