//! The paper's Listing 12 over sessions of ten events: five steps, half an hour, by device and source; over all of them, over a store's, and
//! kept as a view.

use std::time::{Duration, Instant};

use super::super::Result;
use super::super::wire::Connection;
use super::report::Report;
use super::{FunnelArgs, expect, schema};

/// Rows of one INSERT of the set-up.
const SETUP_ROWS: u64 = 100_000;

/// How long freshly written rows are given to leave the memory: what is asked then reads files as well.
const SETTLE_MAX: Duration = Duration::from_secs(60);

/// What `benches/peers.py --funnel` has in the words of other databases.
const STEPS: &str = "steps := [event_type = 'page_view' AND page = '/products', event_type = 'product_view',
     event_type = 'add_to_cart', event_type = 'checkout_start', event_type = 'purchase'], window := INTERVAL '30' MINUTE";

pub async fn run(control: &Connection, args: FunnelArgs) -> Result<Report> {
    let FunnelArgs { rows, queries } = args;
    let mut report = Report::new("funnel", &format!("{rows} rows, {} sessions, {queries} queries", rows / 10));
    let begin = Instant::now();
    schema::create(control, 0).await?;
    set_up(control, rows).await?;
    report.number("set_up", begin.elapsed().as_secs_f64(), "s");
    settle(control).await?;
    let grouped = format!("FUNNEL(bench_events, {STEPS}, group_by := [device_type, utm_source])");
    let questions = [
        ("funnel_grouped", format!("SELECT * FROM {grouped}")),
        ("funnel", format!("SELECT * FROM FUNNEL(bench_events, {STEPS})")),
        ("funnel_by_step_1", format!("SELECT * FROM {}", grouped.replace("source])", "source], attribution := 'step_1')"))),
        ("funnel_of_a_store", format!("SELECT * FROM {}", grouped.replace("])", "], filters := [store_id = 'store_7'])"))),
    ];
    for (name, text) in &questions {
        let mut times = Vec::new();
        for _ in 0..queries {
            let begin = Instant::now();
            control.client.simple_query(text).await?;
            times.push(begin.elapsed());
        }
        report.times(name, &mut times);
    }
    let entered = control.number(&format!("SELECT sum(entities)::bigint FROM {grouped} WHERE step = 1")).await?;
    let of_table = "SELECT count(DISTINCT session_id) FROM bench_events WHERE event_type = 'page_view' AND page = '/products'";
    expect("sessions of step 1", control.number(of_table).await?, entered)?;
    report.checked("as many sessions entered the funnel as have a first step");
    maintained(control, &grouped, rows, queries, &mut report).await?;
    Ok(report)
}

/// Rows of a commit between two readings of the view.
const COMMIT_ROWS: u64 = 100;

/// The grouped funnel as a view: what rows cost with it and without, and how long it takes to read after each commit.
async fn maintained(control: &Connection, grouped: &str, rows: u64, queries: u64, report: &mut Report) -> Result<()> {
    let more = (rows / 10).clamp(1, SETUP_ROWS);
    let begin = Instant::now();
    insert(control, rows, rows + more).await?;
    report.number("ingest_without_view", more as f64 / begin.elapsed().as_secs_f64(), "rows/s");
    let begin = Instant::now();
    control.run(&format!("CREATE MATERIALIZED VIEW bench_funnel AS SELECT * FROM {grouped}")).await?;
    report.number("view_built", begin.elapsed().as_secs_f64(), "s");
    let begin = Instant::now();
    insert(control, rows + more, rows + 2 * more).await?;
    report.number("ingest_with_view", more as f64 / begin.elapsed().as_secs_f64(), "rows/s");
    control.client.simple_query("SELECT * FROM bench_funnel").await?;
    let mut times = Vec::new();
    for query in 0..queries {
        let from = rows + 2 * more + query * COMMIT_ROWS;
        insert(control, from, from + COMMIT_ROWS).await?;
        let begin = Instant::now();
        control.client.simple_query("SELECT * FROM bench_funnel").await?;
        times.push(begin.elapsed());
    }
    report.times("view_after_commit", &mut times);
    let differing = format!("SELECT count(*) FROM (SELECT * FROM {grouped} EXCEPT SELECT * FROM bench_funnel) AS missing");
    expect("rows that the view has not", 0, control.number(&differing).await?)?;
    report.checked("the view has the funnel's rows");
    Ok(())
}

/// A thousand sessions at a time, each with an event every twenty seconds; a third of the pages are lists of products.
async fn set_up(control: &Connection, rows: u64) -> Result<()> {
    control.run("SET verus.late_rows = 'apply'").await?;
    for from in (0..rows).step_by(SETUP_ROWS as usize) {
        insert(control, from, (from + SETUP_ROWS).min(rows)).await?;
    }
    control.run("RESET verus.late_rows").await
}

/// The events from one number to before another, in one statement.
async fn insert(control: &Connection, from: u64, end: u64) -> Result<()> {
    let to = end - 1;
    control
        .run(&format!(
            "INSERT INTO bench_events (event_id, event_type, event_time, user_id, session_id, store_id, device_type, utm_source, page)
                 SELECT gen_random_uuid(),
                        CASE WHEN h < 700 THEN 'page_view' WHEN h < 900 THEN 'product_view' WHEN h < 950 THEN 'add_to_cart'
                             WHEN h < 976 THEN 'checkout_start' ELSE 'purchase' END,
                        TIMESTAMPTZ '2024-05-01 00:00:00+00' + i * INTERVAL '20 milliseconds',
                        'user_' || s % 50000, 'sess_' || s, 'store_' || s % 1000,
                        CASE s % 3 WHEN 0 THEN 'mobile' WHEN 1 THEN 'desktop' ELSE 'tablet' END,
                        CASE s % 4 WHEN 0 THEN 'google' WHEN 1 THEN 'email' WHEN 2 THEN 'direct' END,
                        CASE WHEN h % 3 = 0 THEN '/products' ELSE '/' END
                 FROM (SELECT i, i % 1000 + i / 10000 * 1000 AS s, (i % 1000003) * (i % 1000003) % 1000003 % 1000 AS h
                       FROM generate_series({from}::bigint, {to}::bigint) AS g(i)) AS numbered"
        ))
        .await
}

/// Waits until the table's rows are in files, or long enough.
async fn settle(control: &Connection) -> Result<()> {
    let begin = Instant::now();
    let hot = "SELECT coalesce(sum(hot_rows), 0)::bigint FROM verus.tables WHERE table_name = 'bench_events'";
    while begin.elapsed() < SETTLE_MAX && control.number(hot).await? > SETUP_ROWS as i64 {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}
