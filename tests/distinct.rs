//! COUNT(DISTINCT) in a view whose sets are larger than the memory of queries.

use crate::harness::{Options, Server, Session};

const COPY: &str = "COPY visits FROM STDIN (FORMAT csv)";

const EVERYBODY: &str = "CREATE MATERIALIZED VIEW everybody AS \
                         SELECT count(DISTINCT id) AS ids, count(DISTINCT name) AS names, count(*) AS visits FROM visits";

/// Rows of visitors `from` to before `to`: ten a second, every second one in the first store, the others in five hundred.
fn visits(from: u64, to: u64) -> String {
    (from..to)
        .map(|visitor| {
            let time = visitor / 10 % 86_400;
            let store = if visitor % 2 == 0 { 0 } else { visitor % 1_000 };
            let name = visitor * 7_919 % 100_003_319;
            format!(
                "2024-05-01 {:02}:{:02}:{:02}+00,store {store},{visitor},visitor number {name}\n",
                time / 3_600,
                time / 60 % 60,
                time % 60
            )
        })
        .collect()
}

async fn check(session: &Session, visitors: u64, when: &str) {
    let expected = visitors.to_string();
    for column in ["ids", "names", "visits"] {
        assert_eq!(session.value(&format!("SELECT {column} FROM everybody")).await, expected, "{column} {when}");
    }
    let by_store = "SELECT count(*) || ' ' || sum(ids) || ' ' || sum(visits) || ' ' || max(ids) FROM by_store";
    let odd = visitors / 2;
    assert_eq!(session.value(by_store).await, format!("501 {visitors} {visitors} {}", visitors - odd), "{when}");
    // What is asked of the table is answered by the view of its grain.
    assert_eq!(session.value("SELECT count(DISTINCT name) FROM visits").await, expected, "{when}");
}

async fn route(session: &Session, query: &str) -> String {
    session.rows(&format!("EXPLAIN (ROUTE) {query}")).await.concat().join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn sets_of_more_than_memory() {
    let env = vec![("VERUS_LIMITS_QUERY_MEMORY_BYTES", "16777216".to_owned()), ("VERUS_LIMITS_STORE_CHECKPOINT_MS", "100".to_owned())];
    let mut server = Server::start_with(Options { template: false, env }).await;
    let session = server.connect().await;
    session
        .rows(
            "CREATE TABLE visits (at timestamptz NOT NULL, store text, id bigint, name text, \
             WATERMARK FOR at AS at - INTERVAL '1' DAY) WITH (partition_by = 'store')",
        )
        .await;
    session.rows(EVERYBODY).await;
    session
        .rows("CREATE MATERIALIZED VIEW by_store AS SELECT store, count(DISTINCT id) AS ids, count(*) AS visits FROM visits GROUP BY store")
        .await;
    let all = 600_000;
    for from in (0..all).step_by(20_000) {
        session.copy(COPY, &visits(from, from + 20_000)).await.unwrap();
        if from % 200_000 == 0 {
            check(&session, from + 20_000, "while it grows").await;
        }
    }
    check(&session, all, "in the end").await;
    server.kill();
    server.restart().await;
    let session = server.connect().await;
    check(&session, all, "after a kill").await;
    let of_names = route(&session, "SELECT count(DISTINCT name) FROM visits").await;
    assert!(of_names.starts_with("Route: view\n  View: everybody"), "{of_names}");
    // Sets of many groups that would have to be one: the table's rows spill.
    session.rows("DROP MATERIALIZED VIEW everybody").await;
    let query = "SELECT count(DISTINCT id) FROM visits";
    let of_ids = route(&session, query).await;
    assert!(of_ids.contains("Rejected: by_store: its sets of distinct values are too large"), "{of_ids}");
    assert_eq!(session.value(query).await, all.to_string());
    session.rows(EVERYBODY).await;
    session.until(&format!("SELECT ids = {all} FROM everybody")).await;

    // Some are forgotten.
    session.rows("DELETE FROM visits WHERE id >= 500000").await;
    check(&session, 500_000, "after a deletion").await;
    server.kill();
    server.restart().await;
    let session = server.connect().await;
    check(&session, 500_000, "after a deletion and a kill").await;

    // Made anew from the rows.
    session.rows("CREATE MATERIALIZED VIEW again AS SELECT count(DISTINCT name) AS names FROM visits").await;
    session.until("SELECT names = 500000 FROM again").await;
}
