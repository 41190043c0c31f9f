"""Write the text of each PDF file in `pdfs/` to `text/`, with ProcessPoolExecutor."""

import logging
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from pypdf import PdfReader

TEXT = Path("text")
logging.getLogger("pypdf").setLevel(logging.ERROR)


def extract(pdf: Path) -> int:
    pages = [page.extract_text() for page in PdfReader(pdf).pages]
    text = "\n".join(f"# {number}\n{page}" for number, page in enumerate(pages, start=1))
    (TEXT / pdf.name).with_suffix(".txt").write_text(text)
    return len(pages)


if __name__ == "__main__":
    TEXT.mkdir(exist_ok=True)
    pages = 0
    with ProcessPoolExecutor() as pool:
        futures = {pool.submit(extract, pdf): pdf for pdf in Path("pdfs").glob("*.pdf")}
        for future in as_completed(futures):
            if future.exception():
                print(futures[future].name, "failed")
            else:
                pages += future.result()
    print(pages, "pages")
