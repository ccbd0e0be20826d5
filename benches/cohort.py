#!/usr/bin/env python3
"""Weekly cohorts: Verus's COHORT_ANALYSIS against Listing 10's SQL in DuckDB and, where chdb is installed, ClickHouse; the same rows.

Verus answers over the wire from its Parquet files and hot rows; the peers answer in this process from tables of their own, sorted by store
and time as Verus clusters its files. All are asked about all stores, then about the same random stores, in an order drawn each time. Fails when an answer
differs.

    verus bench cohort --rows 10000000 --keep        # leaves the table bench_events
    cohort.py --verus HOST:PORT [--queries 20]
"""
import argparse
import datetime
import random
import statistics
import time

import duckdb
import psycopg

try:
    from chdb.session import Session
except ImportError:
    Session = None

COLUMNS = "event_type, event_time, store_id, user_id, order_id"
OPERATOR = """SELECT cohort_date, period, active_users, metric FROM COHORT_ANALYSIS(bench_events,
    cohort_date := DATE_TRUNC('week', first_purchase_date), activity_date := DATE_TRUNC('week', event_time), user_id := user_id,
    metric := COUNT(DISTINCT order_id), filters := [event_type = 'purchase'{list}]) ORDER BY 1, 2"""
LISTING = """WITH cohorts AS (
        SELECT user_id, DATE_TRUNC('week', MIN(event_time)) AS cohort_week FROM bench_events
        WHERE event_type = 'purchase'{condition} GROUP BY user_id),
    activity AS (
        SELECT e.user_id AS user_id, c.cohort_week AS cohort_week, DATE_TRUNC('week', e.event_time) AS activity_week, e.order_id AS order_id
        FROM bench_events e JOIN cohorts c ON e.user_id = c.user_id WHERE e.event_type = 'purchase'{condition})
    SELECT cohort_week, DATE_DIFF('week', cohort_week, activity_week) AS weeks, COUNT(DISTINCT user_id), COUNT(DISTINCT order_id)
    FROM activity GROUP BY cohort_week, weeks ORDER BY 1, 2"""


def load(verus, path):
    with open(path, "wb") as file, verus.cursor().copy(f"COPY (SELECT {COLUMNS} FROM bench_events) TO STDOUT (FORMAT csv, HEADER)") as copy:
        for data in copy:
            file.write(data)
    duck = duckdb.connect()
    duck.execute("SET TimeZone = 'UTC'")
    duck.execute(f"CREATE TABLE bench_events AS SELECT * FROM read_csv('{path}', header = true) ORDER BY store_id, event_time")
    peers = {f"DuckDB {duckdb.__version__}": lambda sql: duck.execute(sql).fetchall()}
    if Session:
        house = Session()
        house.query("CREATE DATABASE bench")
        house.query("USE bench")
        duck.execute(f"COPY bench_events TO '{path}.parquet'")
        house.query("CREATE TABLE bench_events (event_type LowCardinality(String), event_time DateTime64(6, 'UTC'), store_id LowCardinality(String), "
                    "user_id String, order_id String) ENGINE = MergeTree ORDER BY (store_id, event_time)")
        house.query(f"INSERT INTO bench_events SELECT {COLUMNS} FROM file('{path}.parquet')")

        def ask(sql):
            lines = str(house.query(sql, "TSV")).splitlines()
            return [tuple(line.split("\t")) for line in lines]
        peers[f"ClickHouse {house.query('SELECT version()', 'TSV')}".strip()] = ask
    return peers


def shown(rows):
    """Cohort's day, period, users, orders: what all of them say in the same words."""
    def day(value):
        return value.date().isoformat() if isinstance(value, datetime.datetime) else str(value)[:10]
    return [(day(row[0]), int(row[1]), int(row[2]), int(row[3])) for row in rows]


def timed(ask, sql):
    begin = time.perf_counter()
    rows = ask(sql)
    return shown(rows), time.perf_counter() - begin


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--verus", required=True, metavar="HOST:PORT")
    arguments.add_argument("--queries", type=int, default=20)
    arguments.add_argument("--scratch", default="/tmp/verus-cohort.csv", help="where the rows are written between them")
    options = arguments.parse_args()
    host, port = options.verus.rsplit(":", 1)
    verus = psycopg.connect(host=host, port=port, user="verus", dbname="verus", autocommit=True)
    verus.execute("SET verus.route = 'scan'")
    verus.execute("SET TimeZone = 'UTC'")
    stores = verus.execute("SELECT count(DISTINCT store_id) FROM bench_events").fetchone()[0]
    peers = load(verus, options.scratch)
    random.seed(1)
    for name in ["all stores", "one store"]:
        times = {"Verus COHORT_ANALYSIS": [], "Verus Listing 10": [], **{peer: [] for peer in peers}}
        for _ in range(options.queries):
            store = f"store_id = 'store_{random.randint(1, stores)}'" if name == "one store" else ""
            listing = LISTING.format(condition=f" AND {store}" if store else "")
            asks = [("Verus COHORT_ANALYSIS", lambda sql: verus.execute(sql).fetchall(), OPERATOR.format(list=f", {store}" if store else "")),
                    ("Verus Listing 10", lambda sql: verus.execute(sql).fetchall(), listing)]
            asks += [(peer, ask, listing) for peer, ask in peers.items()]
            answers = []
            # What one leaves running is not always at the cost of the same other.
            random.shuffle(asks)
            for asked, ask, sql in asks:
                answer, took = timed(ask, sql)
                times[asked].append(took)
                answers.append(answer)
            if any(answer != answers[0] for answer in answers):
                raise SystemExit(f"different answers: {[answer[:3] for answer in answers]}")
        print(f"weekly cohorts, {name}")
        for asked, took in times.items():
            took.sort()
            print(f"  {asked:24} {1000 * statistics.median(took):8.1f} ms p50 {1000 * took[min(len(took) - 1, int(len(took) * .95))]:8.1f} p95")


if __name__ == "__main__":
    main()
