//! Data that no one here wrote, loaded by COPY, against values that another database computed once (`tests/expected/make.py`).
//!
//! Each query runs three times: over rows in memory, over the Parquet files after a restart, and, where it can be kept, as a
//! materialized view made before the rows came.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Options, Rows, Server, Session};

/// Name of the expected values, the query, its order, and whether it can be a materialized view.
type Case = (&'static str, &'static str, &'static str, bool);

const ECOM: &[Case] = &[
    (
        "ecom_by_event",
        "SELECT event, count(*) AS n, count(DISTINCT user_id) AS users, count(DISTINCT session_id) AS sessions, min(\"timestamp\") AS first, \
         max(\"timestamp\") AS last FROM ecom GROUP BY event",
        "1",
        true,
    ),
    (
        "ecom_by_hour",
        "SELECT date_trunc('hour', \"timestamp\") AS hour, platform, count(*) AS n, count(DISTINCT session_id) AS sessions FROM ecom \
         WHERE event <> 'home' GROUP BY 1, 2",
        "1, 2",
        true,
    ),
    (
        "ecom_by_channel",
        "SELECT acquisition_channel, user_lifecycle, count(*) AS n, count(*) FILTER (WHERE event = 'purchase') AS purchases, \
         bool_or(platform = 'tablet') AS tablet FROM ecom GROUP BY acquisition_channel, user_lifecycle",
        "1, 2",
        true,
    ),
    (
        "ecom_busiest_users",
        "SELECT user_id, count(*) AS n FROM ecom GROUP BY user_id ORDER BY n DESC, user_id LIMIT 25",
        "2 DESC, 1",
        false,
    ),
    (
        "ecom_next_event",
        "SELECT event, following, count(*) AS n FROM (SELECT event, lead(event) OVER (PARTITION BY session_id ORDER BY \"timestamp\", event) \
         AS following FROM ecom) AS pairs GROUP BY event, following",
        "1, 2",
        false,
    ),
    (
        "ecom_funnel",
        "SELECT platform, acquisition_channel, step, entities, median_seconds FROM FUNNEL(ecom, steps := [event = 'product_view', \
         event = 'add_to_cart', event = 'cart', event = 'shipping_details', event = 'payment_details', event = 'purchase'], \
         window := INTERVAL '30' MINUTE, group_by := [platform, acquisition_channel])",
        "1, 2, 3",
        false,
    ),
    (
        "ecom_funnel_by_platform",
        "SELECT platform, step, entities FROM FUNNEL(ecom, steps := [event = 'product_view', \
         event = 'add_to_cart', event = 'cart', event = 'shipping_details', event = 'payment_details', event = 'purchase'], \
         by := session_id, group_by := [platform])",
        "1, 2",
        true,
    ),
    (
        "ecom_funnel_by_channel",
        "SELECT acquisition_channel, step, entities FROM FUNNEL(ecom, steps := [event = 'product_view', \
         event = 'add_to_cart', event = 'cart', event = 'shipping_details', event = 'payment_details', event = 'purchase'], \
         by := user_id, group_by := [acquisition_channel])",
        "1, 2",
        true,
    ),
];

const CDNOW: &[Case] = &[
    (
        "cdnow_by_month",
        "SELECT date_trunc('month', at) AS month, count(*) AS n, count(DISTINCT customer) AS customers, sum(cds) AS cds, sum(dollars) AS dollars, \
         max(dollars) AS most FROM cdnow GROUP BY 1",
        "1",
        true,
    ),
    (
        "cdnow_top_customers",
        "SELECT customer, count(*) AS n, sum(dollars) AS total FROM cdnow GROUP BY customer ORDER BY total DESC, customer LIMIT 20",
        "3 DESC, 1",
        false,
    ),
    (
        "cdnow_retention",
        "WITH cohorts AS (SELECT customer, date_trunc('month', min(at)) AS cohort FROM cdnow GROUP BY customer) \
         SELECT c.cohort, DATE_DIFF('month', c.cohort, date_trunc('month', d.at)) AS months, count(DISTINCT d.customer) AS customers \
         FROM cdnow d JOIN cohorts c ON d.customer = c.customer GROUP BY 1, 2",
        "1, 2",
        false,
    ),
    (
        "cdnow_cohorts",
        "SELECT cohort_date, period, cohort_size, active_users, metric, retention FROM COHORT_ANALYSIS(cdnow, \
         cohort_date := DATE_TRUNC('month', first_event_date), activity_date := DATE_TRUNC('month', at), user_id := customer, \
         metric := SUM(dollars))",
        "1, 2",
        false,
    ),
    (
        "cdnow_lifetime_value",
        "SELECT cohort_date, period, metric FROM COHORT_ANALYSIS(cdnow, cohort_date := DATE_TRUNC('month', MIN(at)), \
         activity_date := DATE_TRUNC('month', at), user_id := customer, metric := SUM(dollars), cumulative := true)",
        "1, 2",
        false,
    ),
];

/// The directory of the data, or none, said loudly: a test without its input must not look like one that passed.
pub fn shared(file: &str) -> Option<PathBuf> {
    let named = std::env::var_os("VERUS_SHARED_DATA").map(PathBuf::from);
    let path = named.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data")).join(file);
    if !path.exists() {
        eprintln!("\nNOT TESTED: {} is missing; set VERUS_SHARED_DATA to the directory that has it\n", path.display());
        return None;
    }
    Some(path)
}

fn expected(name: &str) -> Rows {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/expected").join(format!("{name}.csv"));
    // No value of these files holds a comma or a quote.
    std::fs::read_to_string(path).unwrap().lines().map(|line| line.split(',').map(str::to_owned).collect()).collect()
}

async fn check(session: &Session, cases: &[Case], when: &str) {
    for (name, query, order, is_view) in cases {
        let mut sources = vec![format!("({query}) AS q")];
        if *is_view {
            sources.push(format!("{name}_view"));
        }
        for source in sources {
            let actual = session.rows(&format!("SELECT * FROM {source} ORDER BY {order}")).await;
            let expected = expected(name);
            if let Some((actual, expected)) = actual.iter().zip(&expected).find(|(a, e)| a != e) {
                panic!("{name}, {when}, from {source}: {actual:?} instead of {expected:?}");
            }
            assert_eq!(actual.len(), expected.len(), "{name}, {when}, from {source}: number of rows");
        }
    }
}

/// Loads `text` into a table, with the views made before, and checks over memory, over Parquet and after a kill.
async fn run(create: &str, copy: &str, text: &str, rows: u64, cases: &[Case]) {
    let options = Options { env: vec![("VERUS_LIMITS_STORE_FLUSH_AGE_MS", "60000".to_owned())], ..Options::default() };
    let mut server = Server::start_with(options).await;
    let session = server.connect().await;
    session.rows(create).await;
    for (name, query, _, is_view) in cases {
        if *is_view {
            session.rows(&format!("CREATE MATERIALIZED VIEW {name}_view AS {query}")).await;
        }
    }
    session.rows("SET verus.late_rows = 'apply'").await;
    assert_eq!(session.copy(copy, text).await.unwrap_or_else(|error| panic!("{error} {}", error.detail)), rows);
    check(&session, cases, "in memory").await;
    server.kill();
    server.restart().await;
    check(&server.connect().await, cases, "after a kill").await;
    // The table is the word after CREATE TABLE.
    let table = create.split(' ').nth(2).expect("CREATE TABLE name");
    server.restart_from_files(table).await;
    check(&server.connect().await, cases, "from files").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shop_clickstream() {
    let Some(path) = shared("ecom.csv.gz") else { return };
    let output = Command::new("zcat").arg(path).output().expect("zcat runs");
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    run(
        "CREATE TABLE ecom (user_id text, session_id text, event text, \"timestamp\" timestamp NOT NULL, platform text, acquisition_channel text, \
         user_cohort text, user_lifecycle text, WATERMARK FOR \"timestamp\" AS \"timestamp\" - INTERVAL '1 hour') WITH (partition_by = 'platform')",
        "COPY ecom FROM STDIN WITH (FORMAT csv, HEADER)",
        &text,
        31_106,
        ECOM,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn music_shop_purchases() {
    let Some(path) = shared("cdnow_sample.txt") else { return };
    let text = std::fs::read_to_string(path).unwrap();
    // Fixed width: master id, sample id, date, number of CDs, dollars.
    let lines: Vec<String> = text
        .lines()
        .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>())
        .filter(|fields| !fields.is_empty())
        .map(|fields| {
            format!(
                "{}\t{}\t{}-{}-{}\t{}\t{}\n",
                fields[0],
                fields[1],
                &fields[2][..4],
                &fields[2][4..6],
                &fields[2][6..],
                fields[3],
                fields[4]
            )
        })
        .collect();
    run(
        "CREATE TABLE cdnow (customer integer NOT NULL, sample integer, at timestamp NOT NULL, cds integer, dollars numeric(10,2), \
         WATERMARK FOR at AS at - INTERVAL '1 day')",
        "COPY cdnow FROM STDIN",
        &lines.concat(),
        lines.len() as u64,
        CDNOW,
    )
    .await;
}
