#!/usr/bin/env python3
"""Computes the expected values of src/anomaly/tests.rs with statsmodels.

    python3 -m venv venv && venv/bin/pip install statsmodels==0.15.0 numpy==2.4.6 pandas
    venv/bin/python tests/expected/decomposition.py DIRECTORY_OF_THE_DATA

Made with Python 3.11, statsmodels 0.15.0, numpy 2.4.6. The series: Nile, sunspots, El Nino, US macrodata and CO2 at Mauna Loa, all
bundled with statsmodels and in the public domain; hourly events of ecom.csv.gz (PyPI package retentioneering 5.2.4, Apache-2.0).

One file a series, one row a point: y, then trend, seasonal and residual by each method. Where a cell is empty nothing is
expected (rows are sampled, both ends whole); NaN is written NaN.
"""
import pathlib
import sys

import numpy as np
import pandas as pd
import statsmodels.api as sm
from statsmodels.tsa.seasonal import MSTL, STL, seasonal_decompose

here = pathlib.Path(__file__).parent
data = pathlib.Path(sys.argv[1])

elnino = sm.datasets.elnino.load_pandas().data.set_index("YEAR").to_numpy().ravel()
co2 = sm.datasets.co2.load_pandas().data["co2"].interpolate().to_numpy()
ecom = pd.read_csv(data / "ecom.csv.gz", parse_dates=["timestamp"]).set_index("timestamp").resample("1h").size().to_numpy(dtype=float)
nile = sm.datasets.nile.load_pandas().data["volume"].to_numpy(dtype=float)

SERIES = {
    # name: (values, period, periods of mstl)
    "nile": (nile, 10, [10]),
    "sunspots": (sm.datasets.sunspots.load_pandas().data["SUNACTIVITY"].to_numpy(), 11, [11, 80]),
    "realgdp": (sm.datasets.macrodata.load_pandas().data["realgdp"].to_numpy(), 4, [4]),
    "elnino": (elnino, 12, [12, 60]),
    "co2": (co2[:1000], 52, [52]),
    "ecom": (ecom[:1500], 24, [24, 168]),
    # As short as can be: windows longer than the series.
    "shortest_even": (nile[:4], 2, None),
    "shortest_odd": (nile[:7], 3, None),
    "two_periods": (nile[:20], 10, None),
}

for name, (values, period, periods) in SERIES.items():
    found = {
        "classical": seasonal_decompose(values, model="additive", period=period),
        "stl": STL(values, period=period).fit(),
        "means": STL(values, period=period, seasonal=35, seasonal_deg=0).fit(),
    }
    if periods:
        found["mstl"] = MSTL(values, periods=periods).fit()
    columns = {"y": values}
    for method, parts in found.items():
        seasonal = parts.seasonal if parts.seasonal.ndim == 1 else parts.seasonal.sum(axis=1)
        columns |= {f"{method}_trend": parts.trend, f"{method}_seasonal": seasonal, f"{method}_residual": parts.resid}
    step = max(1, len(values) // 60)
    with open(here / f"decomposition_{name}.csv", "w") as target:
        print(",".join(columns), file=target)
        for row in range(len(values)):
            kept = row % step == 0 or min(row, len(values) - 1 - row) < 3 or abs(row - period // 2) < 2
            cells = [repr(float(column[row])).replace("nan", "NaN") if kept or key == "y" else "" for key, column in columns.items()]
            print(",".join(cells), file=target)
    print(name, len(values), period, periods)
