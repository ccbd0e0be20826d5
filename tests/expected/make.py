#!/usr/bin/env python3
"""Computes the expected values of tests/real_data.rs with other software.

    python3 -m venv venv && venv/bin/pip install duckdb==2.0.1 retentioneering==5.2.4
    venv/bin/python tests/expected/make.py DIRECTORY_OF_THE_DATA

Made with Python 3.11, DuckDB 2.0.1 and, for the funnels without a window, retentioneering 5.2.4. The data: ecom.csv.gz (PyPI package retentioneering 5.2.4, Apache-2.0) and
cdnow_sample.txt (PyPI package Lifetimes 0.11.3, MIT; Fader and Hardie 2001). Each query here stands, in Verus's SQL, under
the same name in tests/real_data.rs. NULL is written NULL; booleans, doubles and timestamps as PostgreSQL prints them.
"""
import collections
import csv
import gzip
import pathlib
import sys

import duckdb
from retentioneering import Eventstream
from retentioneering.tools.funnel import Funnel

data = pathlib.Path(sys.argv[1])
here = pathlib.Path(__file__).parent
db = duckdb.connect()
db.execute("SET TimeZone = 'UTC'")

with gzip.open(data / "ecom.csv.gz", "rt") as source, open("/tmp/ecom.csv", "w") as target:
    target.write(source.read())
db.execute("""
    CREATE TABLE ecom (user_id text, session_id text, event text, "timestamp" timestamp, platform text,
                       acquisition_channel text, user_cohort text, user_lifecycle text);
    INSERT INTO ecom SELECT * FROM read_csv('/tmp/ecom.csv', header = true, all_varchar = true);
""")
db.execute("CREATE TABLE cdnow (customer integer, sample integer, day date, cds integer, dollars decimal(10,2))")
rows = [line.split() for line in (data / "cdnow_sample.txt").read_text().splitlines() if line.strip()]
db.executemany("INSERT INTO cdnow VALUES (?, ?, strptime(?, '%Y%m%d')::date, ?, ?)", rows)

QUERIES = {
    "ecom_by_event": """
        SELECT event, count(*), count(DISTINCT user_id), count(DISTINCT session_id), min("timestamp"), max("timestamp")
        FROM ecom GROUP BY event ORDER BY event""",
    "ecom_by_hour": """
        SELECT date_trunc('hour', "timestamp") AS hour, platform, count(*), count(DISTINCT session_id)
        FROM ecom WHERE event <> 'home' GROUP BY 1, 2 ORDER BY 1, 2""",
    "ecom_by_channel": """
        SELECT acquisition_channel, user_lifecycle, count(*), count(*) FILTER (WHERE event = 'purchase'), bool_or(platform = 'tablet')
        FROM ecom GROUP BY ALL ORDER BY 1, 2""",
    "ecom_busiest_users": """
        SELECT user_id, count(*) AS n FROM ecom GROUP BY user_id ORDER BY n DESC, user_id LIMIT 25""",
    "ecom_next_event": """
        SELECT event, following, count(*) FROM (
            SELECT event, lead(event) OVER (PARTITION BY session_id ORDER BY "timestamp", event) AS following FROM ecom)
        GROUP BY ALL ORDER BY 1, 2 NULLS LAST""",
    "cdnow_by_month": """
        SELECT date_trunc('month', day)::timestamp AS month, count(*), count(DISTINCT customer), sum(cds), sum(dollars), max(dollars)
        FROM cdnow GROUP BY 1 ORDER BY 1""",
    "cdnow_top_customers": """
        SELECT customer, count(*), sum(dollars) AS total FROM cdnow GROUP BY customer ORDER BY total DESC, customer LIMIT 20""",
    "cdnow_retention": """
        WITH cohorts AS (SELECT customer, date_trunc('month', min(day)) AS cohort FROM cdnow GROUP BY customer)
        SELECT cohort::timestamp, date_diff('month', cohort, date_trunc('month', day)) AS months, count(DISTINCT customer)
        FROM cdnow JOIN cohorts USING (customer) GROUP BY 1, 2 ORDER BY 1, 2""",
    "cdnow_cohorts": """
        WITH cohorts AS (SELECT customer, date_trunc('month', min(day)) AS cohort FROM cdnow GROUP BY customer),
        sizes AS (SELECT cohort, count(*) AS size FROM cohorts GROUP BY cohort)
        SELECT cohort::timestamp, date_diff('month', cohort, date_trunc('month', day)) AS months, any_value(size), count(DISTINCT customer),
               sum(dollars), count(DISTINCT customer)::double / any_value(size)
        FROM cdnow JOIN cohorts USING (customer) JOIN sizes USING (cohort) GROUP BY 1, 2 ORDER BY 1, 2""",
    "cdnow_lifetime_value": """
        WITH cohorts AS (SELECT customer, date_trunc('month', min(day)) AS cohort FROM cdnow GROUP BY customer),
        cells AS (SELECT cohort, date_diff('month', cohort, date_trunc('month', day)) AS months, sum(dollars) AS dollars
                  FROM cdnow JOIN cohorts USING (customer) GROUP BY 1, 2)
        SELECT cohort::timestamp, months, sum(dollars) OVER (PARTITION BY cohort ORDER BY months) FROM cells ORDER BY 1, 2""",
}


STEPS = ["product_view", "add_to_cart", "cart", "shipping_details", "payment_details", "purchase"]
WINDOW_S = 30 * 60


def funnel_levels():
    """The events that end a chain of 1, 2, ... steps, each within the window of the step before; by DuckDB."""
    db.execute("""CREATE TABLE numbered AS SELECT rowid AS n, session_id, event, epoch("timestamp")::bigint AS t, platform,
                  acquisition_channel FROM ecom""")
    db.execute("CREATE TABLE level_1 AS SELECT * FROM numbered WHERE event = ?", [STEPS[0]])
    for index, step in enumerate(STEPS[1:], 2):
        db.execute(f"""CREATE TABLE level_{index} AS SELECT * FROM numbered AS e WHERE event = '{step}' AND EXISTS (
            SELECT 1 FROM level_{index - 1} AS b WHERE b.session_id = e.session_id AND (b.t, b.n) < (e.t, e.n)
            AND e.t - b.t <= {WINDOW_S})""")
    return [db.execute(f"SELECT session_id, t, n FROM level_{index} ORDER BY t, n").fetchall() for index in range(1, len(STEPS) + 1)]


def funnel_listing_13():
    """Listing 13 of the paper: how many sessions reach each step, by platform and channel of their first event."""
    sessions = collections.defaultdict(list)
    for n, session, event, at, platform, channel in db.execute("SELECT * FROM numbered").fetchall():
        sessions[session].append((at, n, event, platform, channel))
    results = collections.defaultdict(lambda: [0] * len(STEPS))
    for events in sessions.values():
        step_times = [None] * len(STEPS)
        events.sort()
        for at, _, event, _, _ in events:
            for i, step in enumerate(STEPS):
                if event == step:
                    if i == 0 or (step_times[i - 1] and at - step_times[i - 1] <= WINDOW_S):
                        step_times[i] = at
        for i, t in enumerate(step_times):
            if t is not None:
                results[events[0][3:]][i] += 1
    return results


def funnel():
    """By platform and channel: step, sessions, median seconds from the step before, along the chain that ends first and is the latest
    of those (so each event is the last that the next one can follow)."""
    levels = funnel_levels()
    groups = dict((session, group) for session, *group in db.execute(
        "SELECT session_id, arg_min(platform, (t, n)), arg_min(acquisition_channel, (t, n)) FROM numbered GROUP BY 1").fetchall())
    by_session = [collections.defaultdict(list) for _ in STEPS]
    for level, events in enumerate(levels):
        for session, at, n in events:
            by_session[level][session].append((at, n))
    counts = collections.defaultdict(lambda: [0] * len(STEPS))
    gaps = collections.defaultdict(lambda: [[] for _ in STEPS])
    for session in by_session[0]:
        furthest = max(level for level in range(len(STEPS)) if session in by_session[level])
        chain = [by_session[furthest][session][0]]
        for level in range(furthest - 1, -1, -1):
            at, n = chain[0]
            chain.insert(0, max(e for e in by_session[level][session] if e < (at, n) and at - e[0] <= WINDOW_S))
        group = tuple(groups[session])
        for level, event in enumerate(chain):
            counts[group][level] += 1
            if level > 0:
                gaps[group][level].append(event[0] - chain[level - 1][0])
    listing = funnel_listing_13()
    assert all(listing[group] == counts[group] for group in counts) and sum(map(sum, listing.values())) == sum(map(sum, counts.values()))
    rows = []
    for group in sorted(counts):
        for level, count in enumerate(counts[group]):
            median = db.execute("SELECT median(unnest::double) FROM unnest(?::bigint[])", [gaps[group][level]]).fetchone()[0]
            rows.append([*group, level + 1, count, "NULL" if median is None else f"{median:g}"])
    return rows


def funnel_of_paths(path, group):
    """By group: step, paths that reach it by events in order whatever time lies between; by retentioneering."""
    events = db.execute(f'SELECT {path}, event, "timestamp", {group} AS "group" FROM ecom ORDER BY rowid').df()
    for value, rows in events.groupby("group"):
        stream = Eventstream(rows.drop(columns="group"), schema={"path_cols": [path], "event_col": "event", "timestamp_col": "timestamp"})
        for level, step in enumerate(Funnel(stream).fit(STEPS)["steps"], 1):
            yield value, level, step["unique_paths"]


def show(value):
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "t" if value else "f"
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return str(value)


for name, query in QUERIES.items():
    with open(here / f"{name}.csv", "w", newline="") as out:
        csv.writer(out, lineterminator="\n").writerows([show(value) for value in row] for row in db.execute(query).fetchall())
    print(name, sum(1 for _ in open(here / f"{name}.csv")), "rows")

with open(here / "ecom_funnel.csv", "w", newline="") as out:
    csv.writer(out, lineterminator="\n").writerows(funnel())
print("ecom_funnel", sum(1 for _ in open(here / "ecom_funnel.csv")), "rows")

for name, path, group in [("ecom_funnel_by_platform", "session_id", "platform"), ("ecom_funnel_by_channel", "user_id", "acquisition_channel")]:
    with open(here / f"{name}.csv", "w", newline="") as out:
        csv.writer(out, lineterminator="\n").writerows(funnel_of_paths(path, group))
    print(name, sum(1 for _ in open(here / f"{name}.csv")), "rows")
