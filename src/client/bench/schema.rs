//! The table `bench_events`, which has the commerce schema's columns, and up to thirty views over it.

use super::super::Result;
use super::super::wire::Connection;

/// Rows may be this late: connections that run behind each other must not lose any.
pub const TABLE: &str = "CREATE TABLE bench_events (
    event_id uuid NOT NULL, event_type text NOT NULL CHECK (event_type <> ''), event_time timestamptz NOT NULL,
    server_timestamp timestamptz NOT NULL DEFAULT now(), user_id text, session_id text NOT NULL, store_id text NOT NULL,
    device_type text, country text, referrer text, utm_source text, utm_medium text, utm_campaign text, page text,
    product_id text, product_category text, order_id text, quantity integer, revenue numeric(12,2), properties jsonb,
    event_date date GENERATED ALWAYS AS (event_time::date) STORED,
    WATERMARK FOR event_time AS event_time - INTERVAL '1 hour'
) WITH (partition_by = 'store_id')";

/// Counts by series and hour.
pub const SERIES: &str = "CREATE TABLE bench_series (
    series text NOT NULL, at timestamptz NOT NULL, n integer NOT NULL, WATERMARK FOR at AS at - INTERVAL '1 hour'
) WITH (partition_by = 'series')";

/// Revenue by store and minute: the view that is checked and read. As the commerce schema's `mv_revenue_by_minute`.
pub const REVENUE: &str = "bench_v01";

const MINUTE: &str = "TUMBLE(event_time, INTERVAL '1' MINUTE) AS w";
const HOUR: &str = "TUMBLE(event_time, INTERVAL '1' HOUR) AS w";
const DAY: &str = "TUMBLE(event_time, INTERVAL '1' DAY) AS w";

/// Keys, aggregates, event type; what a shop's dashboards ask for, in the order in which one would add them.
const VIEWS: [(&[&str], &str, &str); 30] = [
    (&["store_id", MINUTE], "count(*) AS n, sum(revenue) AS revenue, count(DISTINCT user_id) AS users", "purchase"),
    (&["store_id", HOUR], "count(*) AS n, sum(revenue) AS revenue, sum(quantity) AS items", "purchase"),
    (&["store_id", "utm_source", MINUTE], "count(*) AS n, sum(revenue) AS revenue, count(DISTINCT user_id) AS users", "purchase"),
    (&["store_id", DAY], "count(*) AS n, sum(revenue) AS revenue, count(DISTINCT user_id) AS users", "purchase"),
    (&["store_id", "event_type", MINUTE], "count(*) AS n", ""),
    (&["store_id", "device_type", HOUR], "count(*) AS n, sum(revenue) AS revenue", "purchase"),
    (&["product_category", DAY], "count(*) AS n, sum(revenue) AS revenue, sum(quantity) AS items", "purchase"),
    (&["country", HOUR], "count(*) AS n, sum(revenue) AS revenue", "purchase"),
    (&["store_id", HOUR], "count(DISTINCT session_id) AS sessions", "page_view"),
    (&["product_id", HOUR], "count(*) AS n", "product_view"),
    (&["store_id", "product_category", HOUR], "count(*) AS n, sum(quantity) AS items", "add_to_cart"),
    (&["store_id", MINUTE], "count(*) AS n", "payment_failed"),
    (&["utm_source", "utm_medium", "utm_campaign", DAY], "count(*) AS n, sum(revenue) AS revenue", "purchase"),
    (&["store_id", HOUR], "min(revenue) AS least, max(revenue) AS greatest, avg(revenue) AS mean", "purchase"),
    (&["store_id", "country", DAY], "count(*) AS n, sum(revenue) AS revenue", "purchase"),
    (&["store_id", MINUTE], "count(*) AS n", "checkout_start"),
    (&["device_type", "country", HOUR], "count(*) AS n", ""),
    (&["page", HOUR], "count(*) AS n", "page_view"),
    (&["store_id", "utm_source", HOUR], "count(DISTINCT user_id) AS users", "page_view"),
    (&["product_id", DAY], "count(*) AS n, sum(quantity) AS items, sum(revenue) AS revenue", "purchase"),
    (&["store_id", MINUTE], "count(*) AS n", "add_to_cart"),
    (&["store_id", DAY], "approx_distinct(user_id) AS users", ""),
    (&["referrer", DAY], "count(*) AS n", "page_view"),
    (&["store_id", "device_type", MINUTE], "count(*) AS n", "page_view"),
    (&["store_id", HOUR], "sum(quantity) AS items, max(quantity) AS most", "add_to_cart"),
    (&[MINUTE], "count(*) AS n, sum(revenue) AS revenue", "purchase"),
    (&["store_id", "product_id", DAY], "count(*) AS n, sum(revenue) AS revenue", "purchase"),
    (&["country", "device_type", DAY], "count(DISTINCT session_id) AS sessions", "checkout_start"),
    (&["store_id", "event_type", HOUR], "count(*) AS n, min(event_time) AS first, max(event_time) AS last", ""),
    (&["event_type", MINUTE], "count(*) AS n", ""),
];

/// Names, keys and the first measure of the first `count` views.
pub fn measured(count: u64) -> impl Iterator<Item = (String, &'static [&'static str], &'static str)> {
    let named = VIEWS.iter().enumerate().take(usize::try_from(count).unwrap_or(VIEWS.len()));
    named.map(|(index, (keys, aggregates, _))| {
        let first = aggregates.split(", ").next().and_then(|aggregate| aggregate.rsplit(' ').next());
        (name(index), *keys, first.unwrap_or(aggregates))
    })
}

fn name(index: usize) -> String {
    format!("bench_v{:02}", index + 1)
}

/// The statements that make the first `count` views.
pub fn views(count: u64) -> impl Iterator<Item = String> {
    let count = usize::try_from(count).unwrap_or(VIEWS.len());
    VIEWS.iter().enumerate().take(count).map(|(index, (keys, aggregates, event_type))| {
        let filter = if event_type.is_empty() { String::new() } else { format!(" WHERE event_type = '{event_type}'") };
        let groups: Vec<String> = (1..=keys.len()).map(|key| key.to_string()).collect();
        let (name, keys, groups) = (name(index), keys.join(", "), groups.join(", "));
        format!("CREATE MATERIALIZED VIEW {name} AS SELECT {keys}, {aggregates} FROM bench_events{filter} GROUP BY {groups}")
    })
}

/// Makes the table and its first `count` views; those of an earlier run go.
pub async fn create(control: &Connection, count: u64) -> Result<()> {
    create_as(control, count, TABLE).await
}

/// The same, with a table that drops events whose id it has seen within a quarter of an hour.
pub async fn create_with_dedup(control: &Connection, count: u64) -> Result<()> {
    let options = "WITH (dedup_key = 'event_id', dedup_window = '15 minutes', ";
    create_as(control, count, &TABLE.replace("WITH (", options)).await
}

async fn create_as(control: &Connection, count: u64, table: &str) -> Result<()> {
    drop(control).await?;
    control.run(table).await?;
    for view in views(count) {
        control.run(&view).await?;
    }
    Ok(())
}

/// Drops the tables with all their views.
pub async fn drop(control: &Connection) -> Result<()> {
    control.run("DROP TABLE IF EXISTS bench_series CASCADE").await?;
    control.run("DROP TABLE IF EXISTS bench_events CASCADE").await
}
