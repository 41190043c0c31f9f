"""Write the text of each PDF file in `pdfs/` to `text/`, one file after the other."""

import logging
from pathlib import Path

from pypdf import PdfReader
from pypdf.errors import PyPdfError

TEXT = Path("text")
logging.getLogger("pypdf").setLevel(logging.ERROR)


def extract(pdf: Path) -> int:
    pages = [page.extract_text() for page in PdfReader(pdf).pages]
    text = "\n".join(f"# {number}\n{page}" for number, page in enumerate(pages, start=1))
    (TEXT / pdf.name).with_suffix(".txt").write_text(text)
    return len(pages)


TEXT.mkdir(exist_ok=True)
pages = 0
for pdf in Path("pdfs").glob("*.pdf"):
    try:
        pages += extract(pdf)
    except PyPdfError:
        print(pdf.name, "failed")
print(pages, "pages")
