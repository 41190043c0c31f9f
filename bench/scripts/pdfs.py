"""Write the text of each PDF file in `pdfs/` to `text/`, a heading above each page."""

import logging
from pathlib import Path

from pypdf import PdfReader

from procbus import EventBus, subscribe

TEXT = Path("text")
logging.getLogger("pypdf").setLevel(logging.ERROR)


@subscribe(kind="cpu", timeout=60, max_memory="1 GiB")
def extract(pdf: Path) -> int:
    pages = [page.extract_text() for page in PdfReader(pdf).pages]
    text = "\n".join(f"# {number}\n{page}" for number, page in enumerate(pages, start=1))
    (TEXT / pdf.name).with_suffix(".txt").write_text(text)
    return len(pages)


TEXT.mkdir(exist_ok=True)
pages = 0
with EventBus() as bus:
    for receipt in bus.stream(Path("pdfs").glob("*.pdf")):
        if receipt.has_failure:
            print(receipt.event.name, "failed")
        else:
            pages += receipt.result()
print(pages, "pages")
