"""Label the reviews in `reviews.txt`, one a line, by the scikit-learn model in `model.joblib`."""

from pathlib import Path
from typing import Any

import joblib

from procbus import EventBus, resource, subscribe, use


@resource
def model() -> Any:
    return joblib.load("model.joblib")


@subscribe(kind="cpu", batch=1_000)
def classify(reviews: list[str], model: Any = use(model)) -> list[str]:
    labels: list[str] = model.predict(reviews).tolist()
    return labels


with EventBus() as bus, open("reviews.txt") as reviews, open("labels.txt", "w") as labels:
    labels.writelines(f"{label}\n" for label in bus.map(classify, reviews))
good = Path("labels.txt").read_text().split().count("good")
print(good, "reviews are good")
