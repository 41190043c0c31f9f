"""Load the orders of all CSV files in `orders/` into SQLite, with ProcessPoolExecutor."""

import csv
import sqlite3
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime
from pathlib import Path

Order = tuple[int, str, str, int, str]


def parse(file: Path) -> list[Order]:
    orders: list[Order] = []
    with file.open(newline="") as lines:
        for number, at, customer, amount, country in csv.reader(lines):
            euros, _, cents = amount.partition(".")
            time = datetime.fromisoformat(at).isoformat(" ")
            orders.append(
                (int(number), time, customer.strip().title(), int(euros + cents), country)
            )
    return orders


if __name__ == "__main__":
    with ProcessPoolExecutor() as pool, sqlite3.connect("orders.db") as database:
        database.execute("CREATE TABLE orders (number PRIMARY KEY, at, name, cents, country)")
        for orders in pool.map(parse, sorted(Path("orders").glob("*.csv"))):
            database.executemany("INSERT INTO orders VALUES (?, ?, ?, ?, ?)", orders)
        print(*database.execute("SELECT count(*), sum(cents) FROM orders").fetchone())
