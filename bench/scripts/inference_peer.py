"""Label the reviews in `reviews.txt`, one a line, by the model in `model.joblib`, with joblib."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import joblib

model: Any = None


def classify(reviews: list[str]) -> list[str]:
    global model
    if model is None:
        model = joblib.load("model.joblib")
    labels: list[str] = model.predict(reviews).tolist()
    return labels


def batches() -> Iterator[list[str]]:
    with open("reviews.txt") as reviews:
        while batch := list(islice(reviews, 1_000)):
            yield batch


with open("labels.txt", "w") as labels:
    parallel = joblib.Parallel(n_jobs=-1, return_as="generator")
    for found in parallel(joblib.delayed(classify)(batch) for batch in batches()):
        labels.writelines(f"{label}\n" for label in found)
good = Path("labels.txt").read_text().split().count("good")
print(good, "reviews are good")
