#!/usr/bin/env python3
"""Judges series with statsmodels and with Verus: the same rows, the same machine, one after the other.

    pip install statsmodels
    target/release/verus bench anomalies --series 10000 --keep          # leaves the table bench_series
    benches/anomalies_statsmodels.py --port 5432 --series 20

statsmodels is given some of the series, already in memory, one by one, as in the paper's Listing 14; Verus is given all of them by one
statement, reading and sorting included. Both are single runs after one to warm up.
"""
import argparse
import io
import json
import subprocess
import time

import numpy as np
import statsmodels
from statsmodels.tsa.seasonal import STL, seasonal_decompose

parser = argparse.ArgumentParser()
parser.add_argument("--host", default="127.0.0.1")
parser.add_argument("--port", default="5432")
parser.add_argument("--series", type=int, default=20, help="series that statsmodels gets")
parser.add_argument("--period", type=int, default=168)
options = parser.parse_args()


def psql(sql):
    command = ["psql", "-h", options.host, "-p", options.port, "-U", "verus", "-AtX", "-v", "ON_ERROR_STOP=1", "-c", sql, "verus"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


rows = psql(f"COPY (SELECT series, n FROM bench_series WHERE series IN (SELECT series FROM bench_series GROUP BY series ORDER BY series "
            f"LIMIT {options.series}) ORDER BY series, at) TO STDOUT")
series = {}
for line in io.StringIO(rows):
    name, value = line.rstrip("\n").split("\t")
    series.setdefault(name, []).append(float(value))
series = [np.array(values) for values in series.values()]


def judge(residual, sigma):
    return np.abs(residual) > 3.0 * sigma


def classical(values):
    residual = seasonal_decompose(values, period=options.period).resid
    return judge(residual, np.nanstd(residual, ddof=1))


def stl(values):
    residual = STL(values, period=options.period, seasonal=35, seasonal_deg=0).fit().resid
    return judge(residual, 1.4826 * np.median(np.abs(residual - np.median(residual))))


total = int(psql("SELECT count(DISTINCT series) FROM bench_series"))
figures = {"statsmodels": statsmodels.__version__, "series": total, "points": len(series[0])}
for name, function, arguments in (("classical", classical, "method := 'classical'"), ("stl", stl, "robust := false"), ("stl_robust", None, "")):
    call = (f"SELECT count(*) FILTER (WHERE is_anomaly) FROM ANOMALIES(bench_series, time := at, value := n, partition_by := [series], "
            f"period := {options.period}{', ' + arguments if arguments else ''})")
    for _ in range(2):
        begin = time.perf_counter()
        found = int(psql(call))
        verus = total / (time.perf_counter() - begin)
    line = {"verus_series_per_second": round(verus, 1), "anomalies": found}
    if function:
        function(series[0])
        begin = time.perf_counter()
        for values in series:
            function(values)
        peer = len(series) / (time.perf_counter() - begin)
        line |= {"statsmodels_series_per_second": round(peer, 2), "ratio": round(verus / peer, 1)}
    figures[name] = line
    print(name, line)
print(json.dumps(figures))
