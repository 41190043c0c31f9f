"""Label the reviews in `reviews.txt`, one a line, by the scikit-learn model in `model.joblib`."""

from itertools import islice
from pathlib import Path

import joblib

model = joblib.load("model.joblib")
with open("reviews.txt") as reviews, open("labels.txt", "w") as labels:
    while batch := list(islice(reviews, 1_000)):
        labels.writelines(f"{label}\n" for label in model.predict(batch))
good = Path("labels.txt").read_text().split().count("good")
print(good, "reviews are good")
