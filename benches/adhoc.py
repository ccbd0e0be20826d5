#!/usr/bin/env python3
"""Listing 7, an ad-hoc question about one store and one day, asked of Verus and of DuckDB with the same rows.

Verus answers over the wire from its Parquet files and hot rows; DuckDB answers in this process from a table of its own, sorted by store
and time as Verus clusters its files. Both are asked about the same random stores, in turn. Fails when an answer differs.

    verus bench query --rows 10000000 --keep        # leaves the table bench_events
    adhoc.py --verus HOST:PORT [--queries 200]
"""
import argparse
import random
import statistics
import time

import duckdb
import psycopg

SQL = """SELECT product_category, count(*) AS views, count(DISTINCT session_id) AS sessions,
                sum(CASE WHEN event_type = 'purchase' THEN 1 ELSE 0 END) AS purchases
         FROM bench_events WHERE store_id = '{store}' AND event_date = '{day}' AND device_type = 'mobile'
         GROUP BY product_category ORDER BY views DESC, product_category LIMIT 20"""
COLUMNS = "event_type, event_time, event_date, store_id, session_id, device_type, product_category"


def load(verus, path):
    with open(path, "wb") as file, verus.cursor().copy(f"COPY (SELECT {COLUMNS} FROM bench_events) TO STDOUT (FORMAT csv, HEADER)") as copy:
        for data in copy:
            file.write(data)
    duck = duckdb.connect(path + ".duckdb")
    duck.execute("DROP TABLE IF EXISTS bench_events")
    duck.execute(f"CREATE TABLE bench_events AS SELECT * FROM read_csv('{path}', header = true) ORDER BY store_id, event_time")
    return duck


def figures(times):
    times = sorted(times)
    at = lambda share: 1000 * times[min(len(times) - 1, int(len(times) * share))]
    return f"{at(.5):8.2f} ms p50 {at(.95):8.2f} p95 {at(.99):8.2f} p99"


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--verus", required=True, metavar="HOST:PORT")
    arguments.add_argument("--queries", type=int, default=200)
    arguments.add_argument("--scratch", default="/tmp/verus-adhoc.csv", help="where the rows are written between the two")
    options = arguments.parse_args()
    host, port = options.verus.rsplit(":", 1)
    verus = psycopg.connect(host=host, port=port, user="verus", dbname="verus", autocommit=True)
    verus.execute("SET verus.route = 'scan'")
    stores, day = verus.execute("SELECT count(DISTINCT store_id), max(event_date) FROM bench_events").fetchone()
    duck = load(verus, options.scratch)
    rows = duck.execute("SELECT count(*) FROM bench_events").fetchone()[0]
    random.seed(1)
    ours, theirs = [], []
    for _ in range(options.queries):
        sql = SQL.format(store=f"store_{random.randint(1, stores)}", day=day)
        begin = time.perf_counter()
        answer = verus.execute(sql).fetchall()
        ours.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        expected = duck.execute(sql).fetchall()
        theirs.append(time.perf_counter() - begin)
        if [tuple(map(str, row)) for row in answer] != [tuple(map(str, row)) for row in expected]:
            raise SystemExit(f"different answers:\n{answer}\n{expected}\n{sql}")
    print(f"Listing 7 over {rows} rows, DuckDB {duckdb.__version__}")
    print(f"  Verus   {figures(ours)}")
    print(f"  DuckDB  {figures(theirs)}")
    print(f"  ratio of p50: {statistics.median(ours) / statistics.median(theirs):.2f}")


if __name__ == "__main__":
    main()
