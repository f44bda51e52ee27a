"""Weather in two cities, month by month: reads CSV files below /data, writes a table and a plot to /data/results.

An ordinary program: it opens files, and does not know that they are objects in a bucket.
"""

from __future__ import annotations

import os

import matplotlib

matplotlib.use("Agg")  # no screen here

import duckdb
import matplotlib.pyplot as plt
import pandas as pd

RESULTS = "/data/results"

MONTHLY = """
WITH hourly AS (
    SELECT 'Seattle' AS city, CAST(date AS TIMESTAMP) AS time, temp FROM seattle
    UNION ALL
    SELECT 'San Francisco', CAST(date AS TIMESTAMP), temp FROM san_francisco
),
daily AS (
    SELECT city, month(time) AS month, CAST(time AS DATE) AS day, min(temp) AS low, max(temp) AS high, avg(temp) AS mean
    FROM hourly GROUP BY ALL
),
rain AS (
    SELECT month(date) AS month, sum(precipitation) / count(DISTINCT year(date)) AS rain
    FROM weather GROUP BY ALL
)
SELECT city, month, round((avg(low) - 32) / 1.8, 2) AS low_c, round((avg(mean) - 32) / 1.8, 2) AS mean_c,
       round((avg(high) - 32) / 1.8, 2) AS high_c, CASE WHEN city = 'Seattle' THEN round(any_value(rain), 1) END AS rain_mm
FROM daily JOIN rain USING (month) GROUP BY city, month ORDER BY city, month
"""


def read(name: str) -> pd.DataFrame:
    with open(f"/data/{name}", newline="") as file:
        return pd.read_csv(file)


def main() -> None:
    seattle, san_francisco = read("seattle-temps.csv"), read("sf-temps.csv")
    weather = read("seattle-weather.csv")
    weather["date"] = pd.to_datetime(weather["date"])
    print(f"read {len(seattle) + len(san_francisco)} hours of temperatures and {len(weather)} days of weather")
    database = duckdb.connect()
    for name, table in (("seattle", seattle), ("san_francisco", san_francisco), ("weather", weather)):
        database.register(name, table)
    months = database.execute(MONTHLY).df()

    os.makedirs(RESULTS, exist_ok=True)
    months.to_parquet(f"{RESULTS}/monthly.parquet")
    months.to_csv(f"{RESULTS}/monthly.csv", index=False)
    plot(months, f"{RESULTS}/monthly.png")
    print(f"wrote {len(months)} rows and a plot to {RESULTS}")


def plot(months: pd.DataFrame, path: str) -> None:
    figure, (temperature, rain) = plt.subplots(2, 1, figsize=(8, 6), sharex=True, height_ratios=(2, 1), layout="constrained")
    for city, color in (("Seattle", "#1f77b4"), ("San Francisco", "#d95f02")):
        rows = months[months.city == city]
        temperature.plot(rows.month, rows.mean_c, color=color, marker="o", label=f"{city}: mean, and the daily range")
        temperature.fill_between(rows.month, rows.low_c, rows.high_c, color=color, alpha=0.15)
    temperature.set_ylabel("°C")
    temperature.set_title("Temperature and rain, month by month")
    temperature.legend(frameon=False)
    rows = months[months.city == "Seattle"]
    rain.bar(rows.month, rows.rain_mm, color="#1f77b4")
    rain.set_ylabel("rain in Seattle, mm")
    rain.set_xticks(range(1, 13), ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"])
    for axes in (temperature, rain):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
