#!/usr/bin/env python3
"""Ingestion of the same chunks into Verus and PostgreSQL, in turn, with N views kept fresh in both.

Both speak the same protocol, so one client (psycopg 3) drives both: COPY of 10,000-row chunks on one connection, each chunk one
acknowledged statement. Verus keeps materialized views; PostgreSQL keeps rollup tables by one statement trigger a view (and, for
COUNT(DISTINCT), a table of the users seen). Prints events/s of each and the ratio, and checks that both count the same.

    peers.py --verus HOST:PORT --postgres HOST:PORT [--rows 300000] [--views 1 5 15 30]

With --funnel: the paper's Listing 12 over the same events in Verus, ClickHouse (windowFunnel) and DuckDB (a chain of joins), both in
process; pip install duckdb chdb. Prints the best and median times of each and checks that all count the same.

    peers.py --funnel --verus HOST:PORT [--rows 1000000]
"""
import argparse
import datetime
import random
import time
import uuid

import psycopg

COLUMNS = """event_id uuid, event_type text, event_time timestamptz, server_timestamp timestamptz, user_id text, session_id text,
store_id text, device_type text, country text, referrer text, utm_source text, utm_medium text, utm_campaign text, page text,
product_id text, product_category text, order_id text, quantity int, revenue numeric(12,2)"""

# Key columns, window in minutes, condition, whether users are counted.
SHAPES = [
    (["store_id"], 1, "event_type = 'purchase'", True),
    (["store_id"], 60, "true", False),
    (["product_category"], 60, "event_type = 'purchase'", False),
    (["device_type", "country"], 1, "true", False),
    (["event_type"], 1, "true", False),
]


def chunks(rows, size):
    rng = random.Random(1)
    start = datetime.datetime(2024, 5, 1)
    kinds = ["page_view"] * 700 + ["product_view"] * 200 + ["add_to_cart"] * 50 + ["checkout_start"] * 26 + ["purchase"] * 24
    out = []
    for i in range(rows):
        if i % size == 0:
            out.append([])
        at = (start + datetime.timedelta(milliseconds=i * 20 + rng.randint(0, 5000))).isoformat(sep=" ") + "+00"
        kind = rng.choice(kinds)
        bought = kind == "purchase"
        out[-1].append(
            f"{uuid.UUID(int=rng.getrandbits(128))},{kind},{at},{at},user_{rng.randint(1, 50000)},sess_{rng.randint(1, 200000)},"
            f"store_{rng.randint(1, 1000)},{rng.choice(['mobile', 'desktop', 'tablet'])},{rng.choice(['US', 'DE', 'FR', 'GB'])},,"
            f"{rng.choice(['google', 'email', '', 'direct'])},,,/products,p{rng.randint(1, 5000)},cat{rng.randint(1, 20)},"
            f"{'o%d' % i if bought else ''},{rng.randint(1, 3) if bought else ''},{rng.randint(100, 20000) / 100 if bought else ''}"
        )
    return ["\n".join(lines).encode() + b"\n" for lines in out]


def shape(number):
    keys, minutes, condition, distinct = SHAPES[number % len(SHAPES)]
    return keys, minutes * (1 + number // len(SHAPES)), condition, distinct


def verus(connection, views):
    connection.execute("DROP TABLE IF EXISTS bench CASCADE")
    connection.execute(
        f"CREATE TABLE bench ({COLUMNS}, WATERMARK FOR event_time AS event_time - INTERVAL '5 minutes') WITH (partition_by = 'store_id')")
    for number in range(views):
        keys, minutes, condition, distinct = shape(number)
        users = ", count(DISTINCT user_id) AS users" if distinct else ""
        connection.execute(
            f"CREATE MATERIALIZED VIEW bench_{number} AS SELECT {', '.join(keys)}, TUMBLE(event_time, INTERVAL '{minutes}' MINUTE) AS w, "
            f"count(*) AS n, sum(revenue) AS revenue{users} FROM bench WHERE {condition} GROUP BY {', '.join(keys)}, w")


def postgres(connection, views):
    connection.execute("SET client_min_messages = error")
    connection.execute("DROP TABLE IF EXISTS bench CASCADE")
    connection.execute(f"CREATE TABLE bench ({COLUMNS})")
    for number in range(views):
        keys, minutes, condition, distinct = shape(number)
        names, window = ", ".join(keys), f"date_bin('{minutes} minutes', event_time, '2000-01-01')"
        typed = ", ".join(f"{key} text" for key in keys)
        connection.execute(f"DROP TABLE IF EXISTS bench_{number}, bench_{number}_users")
        connection.execute(f"CREATE TABLE bench_{number} ({typed}, w timestamptz, n bigint, revenue numeric, PRIMARY KEY ({names}, w))")
        seen = ""
        if distinct:
            connection.execute(f"CREATE TABLE bench_{number}_users ({typed}, w timestamptz, user_id text, PRIMARY KEY ({names}, w, user_id))")
            seen = (f"INSERT INTO bench_{number}_users SELECT DISTINCT {names}, {window}, user_id FROM added WHERE {condition} "
                    "ON CONFLICT DO NOTHING;")
        connection.execute(f"""CREATE OR REPLACE FUNCTION bench_{number}_kept() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO bench_{number} AS kept SELECT {names}, {window}, count(*), sum(revenue) FROM added WHERE {condition}
            GROUP BY {names}, {window} ON CONFLICT ({names}, w) DO UPDATE
            SET n = kept.n + excluded.n, revenue = coalesce(kept.revenue, 0) + coalesce(excluded.revenue, 0);
            {seen} RETURN NULL; END $$""")
        connection.execute(f"CREATE TRIGGER kept_{number} AFTER INSERT ON bench REFERENCING NEW TABLE AS added "
                           f"FOR EACH STATEMENT EXECUTE FUNCTION bench_{number}_kept()")


def ingest(connection, data):
    latencies = []
    cursor = connection.cursor()
    begin = time.perf_counter()
    for chunk in data:
        sent = time.perf_counter()
        with cursor.copy("COPY bench FROM STDIN WITH (FORMAT csv)") as copy:
            copy.write(chunk)
        latencies.append(time.perf_counter() - sent)
    return time.perf_counter() - begin, sorted(latencies)


# The events of `verus bench funnel`: a thousand sessions at a time, each with an event every twenty seconds.
NUMBERED = """SELECT i, i % 1000 + i {div} 10000 * 1000 AS s, (i % 1000003) * (i % 1000003) % 1000003 % 1000 AS h FROM {source}"""
EVENTS = """SELECT {uuid} AS event_id, CASE WHEN h < 700 THEN 'page_view' WHEN h < 900 THEN 'product_view' WHEN h < 950 THEN 'add_to_cart'
    WHEN h < 976 THEN 'checkout_start' ELSE 'purchase' END AS event_type, {time} AS event_time, {text}('sess_', s) AS session_id,
    {text}('user_', s % 50000) AS user_id, {text}('store_', s % 1000) AS store_id,
    CASE s % 3 WHEN 0 THEN 'mobile' WHEN 1 THEN 'desktop' ELSE 'tablet' END AS device_type,
    CASE s % 4 WHEN 0 THEN 'google' WHEN 1 THEN 'email' WHEN 2 THEN 'direct' END AS utm_source,
    CASE WHEN h % 3 = 0 THEN '/products' ELSE '/' END AS page FROM ({numbered}) AS numbered"""
CONDITIONS = ["event_type = 'page_view' AND page = '/products'", "event_type = 'product_view'", "event_type = 'add_to_cart'",
              "event_type = 'checkout_start'", "event_type = 'purchase'"]


def verus_funnel(connection, rows):
    connection.execute("DROP TABLE IF EXISTS bench CASCADE")
    connection.execute(f"CREATE TABLE bench ({COLUMNS}, WATERMARK FOR event_time AS event_time - INTERVAL '5 minutes') WITH (partition_by = 'store_id')")
    connection.execute("SET verus.late_rows = 'apply'")
    names = "event_id, event_type, event_time, session_id, user_id, store_id, device_type, utm_source, page"
    for start in range(0, rows, 100_000):
        series = f"generate_series({start}::bigint, {min(start + 100_000, rows) - 1}::bigint) AS g(i)"
        connection.execute(f"INSERT INTO bench ({names}) " + EVENTS.format(
            uuid="gen_random_uuid()", text="concat", time="TIMESTAMPTZ '2024-05-01 00:00:00+00' + i * INTERVAL '20 milliseconds'",
            numbered=NUMBERED.format(div="/", source=series)))
    query = f"""SELECT device_type, utm_source, step_1, step_2, step_3, step_4, step_5 FROM FUNNEL(bench, steps := [{', '.join(CONDITIONS)}],
        window := INTERVAL '30' MINUTE, window_from := 'first', group_by := [device_type, utm_source], format := 'wide') ORDER BY 1, 2 NULLS LAST"""
    return lambda: [tuple(row) for row in connection.execute(query).fetchall()]


def clickhouse_funnel(rows):
    from chdb import session
    peer = session.Session()
    peer.query("CREATE DATABASE IF NOT EXISTS b")
    events = EVENTS.format(uuid="generateUUIDv4()", text="concat", time="toDateTime64('2024-05-01 00:00:00', 6, 'UTC') + toIntervalMillisecond(i * 20)",
                           numbered="SELECT number AS i, i % 1000 + intDiv(i, 10000) * 1000 AS s, (i % 1000003) * (i % 1000003) % 1000003 % 1000 AS h "
                                    f"FROM numbers({rows})").replace("'sess_', s)", "'sess_', toString(s))").replace("s % 50000)", "toString(s % 50000))")
    events = events.replace("'store_', s % 1000)", "'store_', toString(s % 1000))")
    peer.query(f"CREATE TABLE b.bench ENGINE = MergeTree ORDER BY (store_id, event_time) AS {events}")
    query = f"""SELECT d, u, {', '.join(f'countIf(level >= {step})' for step in range(1, 6))} FROM (
        SELECT argMin(device_type, event_time) AS d, argMin(tuple(utm_source), event_time).1 AS u,
            windowFunnel(1800000000)(toUInt64(toUnixTimestamp64Micro(event_time)), {', '.join(CONDITIONS)}) AS level
        FROM b.bench GROUP BY session_id) WHERE level > 0 GROUP BY d, u ORDER BY d, u NULLS LAST"""

    def run():
        lines = peer.query(query, "TabSeparated").bytes().decode().splitlines()
        return [tuple(None if cell == "\\N" else int(cell) if cell.isdigit() else cell for cell in line.split("\t")) for line in lines]
    return run


def duckdb_funnel(rows):
    import duckdb
    peer = duckdb.connect()
    events = EVENTS.format(uuid="gen_random_uuid()", text="concat", time="TIMESTAMP '2024-05-01 00:00:00' + to_milliseconds(i * 20)",
                           numbered=NUMBERED.format(div="//", source=f"range({rows}) AS g(i)"))
    peer.execute(f"CREATE TABLE bench AS {events}")
    # Of the starts that lead to a step, the latest before it; a chain within half an hour of its start.
    steps = ["c1 AS (SELECT session_id, event_time AS at, event_time AS start FROM bench WHERE " + CONDITIONS[0] + ")"]
    for step, condition in enumerate(CONDITIONS[1:], 2):
        steps.append(f"""c{step} AS (SELECT e.session_id, e.event_time AS at, max(b.start) AS start FROM bench AS e JOIN c{step - 1} AS b
            ON b.session_id = e.session_id AND b.at <= e.event_time AND e.event_time - b.start <= INTERVAL 30 MINUTE
            WHERE {condition} GROUP BY 1, 2)""")
    reached = " UNION ALL ".join(f"SELECT DISTINCT session_id, {step} AS step FROM c{step}" for step in range(1, 6))
    query = f"""WITH {', '.join(steps)}, levels AS (SELECT session_id, max(step) AS level FROM ({reached}) GROUP BY 1),
        firsts AS (SELECT session_id, arg_min(device_type, event_time) AS d, arg_min_null(utm_source, event_time) AS u FROM bench GROUP BY 1)
        SELECT d, u, {', '.join(f'count(*) FILTER (level >= {step})' for step in range(1, 6))} FROM levels JOIN firsts USING (session_id)
        GROUP BY d, u ORDER BY d, u NULLS LAST"""
    return lambda: peer.execute(query).fetchall()


def funnels(connection, rows):
    peers = {"verus": verus_funnel(connection, rows), "clickhouse": clickhouse_funnel(rows), "duckdb": duckdb_funnel(rows)}
    answers, times = {}, {name: [] for name in peers}
    for _ in range(7):
        for name, run in peers.items():
            begin = time.perf_counter()
            answers[name] = run()
            times[name].append(time.perf_counter() - begin)
    for name, taken in times.items():
        print(f"{name:>10} {min(taken) * 1e3:9.1f} ms best {sorted(taken)[len(taken) // 2] * 1e3:9.1f} ms median")
    if answers["verus"] != answers["clickhouse"] or answers["verus"] != answers["duckdb"]:
        raise SystemExit(f"the funnels differ: {answers}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verus", default="127.0.0.1:5432")
    parser.add_argument("--postgres", default="127.0.0.1:5433")
    parser.add_argument("--postgres-user", default="postgres")
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--views", type=int, nargs="+", default=[1, 5, 15, 30])
    parser.add_argument("--funnel", action="store_true")
    args = parser.parse_args()

    def connect(address, user, database):
        host, port = address.rsplit(":", 1)
        return psycopg.connect(host=host, port=port, user=user, dbname=database, autocommit=True)

    if args.funnel:
        funnels(connect(args.verus, "verus", "verus"), args.rows)
        return
    peers = {"verus": (connect(args.verus, "verus", "verus"), verus), "postgres": (connect(args.postgres, args.postgres_user, "postgres"), postgres)}
    data = chunks(args.rows, 10_000)
    print(f"{'views':>5} {'verus/s':>10} {'postgres/s':>10} {'ratio':>6}   verus p50/p99 ms   postgres p50/p99 ms")
    for views in args.views:
        rates, shown, counts = {}, {}, {}
        for name, (connection, prepare) in peers.items():
            prepare(connection, views)
            elapsed, latencies = ingest(connection, data)
            rates[name] = args.rows / elapsed
            shown[name] = f"{latencies[len(latencies) // 2] * 1e3:6.1f} {latencies[int(len(latencies) * 0.99)] * 1e3:6.1f}"
            counts[name] = [connection.execute(f"SELECT count(*), sum(n), sum(revenue) FROM bench_{number}").fetchone() for number in range(views)]
        if counts["verus"] != counts["postgres"]:
            raise SystemExit(f"the views differ: {counts}")
        ratio = rates["verus"] / rates["postgres"]
        print(f"{views:>5} {rates['verus']:>10,.0f} {rates['postgres']:>10,.0f} {ratio:>6.2f}   {shown['verus']:>16}   {shown['postgres']:>19}", flush=True)


if __name__ == "__main__":
    main()
