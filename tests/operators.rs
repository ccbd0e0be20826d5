//! Operators that follow entities give the same with little memory, from disk, as with enough.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::harness::{Options, SOON, Server, Session};

const TABLE: &str = "CREATE TABLE events (at timestamptz NOT NULL, store text, customer bigint, visit bigint, kind text, channel text, \
                     revenue numeric(12,2), WATERMARK FOR at AS at - INTERVAL '400' DAY) WITH (partition_by = 'store')";

/// Events `from` to before `to` of a hundred thousand customers over a hundred days, each with several visits.
fn events(from: u64, to: u64) -> String {
    const KINDS: [&str; 4] = ["view", "cart", "purchase", "view"];
    const CHANNELS: [&str; 4] = ["ads", "mail", "search", ""];
    (from..to)
        .map(|event| {
            let mixed = event.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
            let (customer, kind) = (mixed % 100_000, KINDS[(mixed / 7 % 4) as usize]);
            let seconds = event * 12;
            let (day, time) = (seconds / 86_400, seconds % 86_400);
            let date = if day < 31 {
                format!("2024-05-{:02}", day + 1)
            } else if day < 61 {
                format!("2024-06-{:02}", day - 30)
            } else {
                format!("2024-07-{:02}", day - 60)
            };
            let revenue = if kind == "purchase" { format!("{}.{:02}", mixed % 90, mixed % 97) } else { String::new() };
            let channel = CHANNELS[(mixed / 11 % 4) as usize];
            format!(
                "{date} {:02}:{:02}:{:02}+00,store {},{customer},{},{kind},{channel},{revenue}\n",
                time / 3_600,
                time / 60 % 60,
                time % 60,
                customer % 5,
                customer * 1_000 + day / 10,
            )
        })
        .collect()
}

const QUERIES: [&str; 4] = [
    "SELECT store, step, entities, median_seconds FROM FUNNEL(events, steps := [kind = 'view', kind = 'cart', kind = 'purchase'], \
     window := INTERVAL '20' DAY, by := visit, group_by := [store]) ORDER BY store, step",
    "SELECT cohort_date, period, cohort_size, active_users, metric FROM COHORT_ANALYSIS(events, \
     cohort_date := DATE_TRUNC('week', MIN(at) FILTER (WHERE kind = 'purchase')), activity_date := DATE_TRUNC('week', at), user_id := customer, \
     metric := SUM(revenue)) ORDER BY cohort_date, period",
    "SELECT channel, conversions, attributed_value FROM ATTRIBUTION(events, conversion := kind = 'purchase', touch := channel IS NOT NULL, \
     channel := channel, by := customer, value := revenue, lookback := INTERVAL '30' DAY, model := 'linear') ORDER BY channel",
    "SELECT count(*), count(DISTINCT session_number), max(session_number) FROM SESSIONIZE(events, by := customer, gap := INTERVAL '5' DAY)",
];

async fn load(server: &Server) -> Session {
    let session = server.connect().await;
    session.rows(TABLE).await;
    for from in (0..400_000).step_by(50_000) {
        session.copy("COPY events FROM STDIN (FORMAT csv)", &events(from, from + 50_000)).await.unwrap();
    }
    session
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_spill() {
    let plenty = Server::start().await;
    let env = vec![("VERUS_LIMITS_QUERY_MEMORY_BYTES", (24 << 20).to_string())];
    let little = Server::start_with(Options { template: false, env }).await;
    let (expected, session) = (load(&plenty).await, load(&little).await);
    for query in QUERIES {
        let rows = expected.rows(query).await;
        assert!(!rows.is_empty(), "{query}");
        assert_eq!(session.rows(query).await, rows, "{query}");
        let plan = session.rows(&format!("EXPLAIN ANALYZE {query}")).await.concat().join("\n");
        let spilled = plan.split("spill_count=").skip(1).any(|rest| !rest.starts_with('0'));
        assert!(spilled, "nothing was spilled:\n{plan}");
    }
}

const TRACES: &str = "SELECT g, count(DISTINCT trace) FROM (SELECT g, trace, v FROM t GROUP BY g, trace, v) AS x GROUP BY g ORDER BY g";

/// A server with little memory for queries, and a table of 400,000 traces.
async fn traces(env: &[(&'static str, u64)]) -> (Server, Session) {
    let env = env.iter().map(|(name, value)| (*name, value.to_string())).collect();
    let server = Server::start_with(Options { template: false, env }).await;
    let session = server.connect().await;
    session.rows("CREATE TABLE t (g int, trace text, v bigint)").await;
    session
        .rows("INSERT INTO t SELECT i % 8, 'trace-' || (i::bigint * 7919 % 400000)::text, i FROM generate_series(1, 400000) AS s(i)")
        .await;
    session.rows("SET statement_timeout = '60s'").await;
    (server, session)
}

/// Two aggregations, one over the other, exchange rows through files while none of them gets on without the other.
#[tokio::test(flavor = "multi_thread")]
async fn queries_that_exchange_rows_through_files_end() {
    let (_server, session) = traces(&[("VERUS_LIMITS_QUERY_MEMORY_BYTES", 8 << 20)]).await;
    for _ in 0..30 {
        let rows = session.rows(TRACES).await;
        assert!(rows.len() == 8 && rows.iter().all(|row| row[1] == "50000"), "{rows:?}");
    }
}

fn files_below(dir: &Path) -> usize {
    let below = |path: PathBuf| if path.is_dir() { files_below(&path) } else { 1 };
    fs::read_dir(dir).unwrap().map(|entry| below(entry.unwrap().path())).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_queries_are_bounded() {
    let limits = [("VERUS_LIMITS_QUERY_MEMORY_BYTES", 8 << 20), ("VERUS_LIMITS_QUERY_SPILL_BYTES_MAX", 4 << 20)];
    let (server, session) = traces(&limits).await;
    let error = session.failure(TRACES).await;
    assert_eq!((error.state.as_str(), error.message.as_str()), ("53400", "temporary files of queries exceed their limit"));
    // What it wrote goes with its last stream.
    let begin = Instant::now();
    while files_below(&server.data_dir().join("spill")) > 0 {
        assert!(begin.elapsed() < SOON, "files of a failed query stay");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
