//! CHECK MATERIALIZED VIEW finds a correct view correct: after its rows went into files, and after retention has removed some of them.

use crate::harness::{Options, Server, Session};

/// Groups, differing ones, whether it is well, and the note.
async fn checked(session: &Session, view: &str) -> [String; 4] {
    let row = session.rows(&format!("CHECK MATERIALIZED VIEW {view}")).await.remove(0);
    [1, 2, 3, 9].map(|column| row[column].clone())
}

async fn assert_well(session: &Session, view: &str, groups: usize) {
    assert_eq!(checked(session, view).await[..3], [groups.to_string(), "0".to_owned(), "t".to_owned()], "{view}");
}

/// Lists have their rows in the order in which they came, not in that of the files, which is by time.
#[tokio::test(flavor = "multi_thread")]
async fn lists_are_in_arrival_order() {
    let mut server = Server::start_with(Options::busy()).await;
    let session = server.connect().await;
    session
        .rows(
            "CREATE TABLE e (id int, at timestamptz NOT NULL, s text, WATERMARK FOR at AS at - INTERVAL '1 day') WITH (partition_by = 's')",
        )
        .await;
    session.rows("CREATE TABLE shops (s text, name text)").await;
    session.rows("INSERT INTO shops VALUES ('a', 'one'), ('b', 'two')").await;
    let lists =
        "array_agg(id) AS ids, string_agg(id::text, ',') AS texts, json_agg(id) AS json, array_agg(id) FILTER (WHERE id > 2) AS some";
    for (view, query) in [
        ("by_shop", format!("SELECT s, {lists}, count(*) AS n FROM e GROUP BY s")),
        ("all_of_it", format!("SELECT {lists} FROM e")),
        ("by_day", format!("SELECT TUMBLE(at, INTERVAL '1' DAY) AS day, {lists} FROM e WHERE id < 10 GROUP BY day")),
        ("hops", format!("SELECT HOP(at, INTERVAL '1' HOUR, INTERVAL '3' HOUR) AS hop, {lists} FROM e GROUP BY hop")),
        ("sessions", "SELECT SESSION(at, INTERVAL '90' MINUTE) AS visit, array_agg(id) AS ids FROM e GROUP BY visit".to_owned()),
    ] {
        session.rows(&format!("CREATE MATERIALIZED VIEW {view} AS {query}")).await;
    }
    for (id, hour) in ["10", "09", "11", "08", "12"].into_iter().enumerate() {
        for (shop, more) in [("a", 1), ("b", 6)] {
            session.rows(&format!("INSERT INTO e VALUES ({}, '2024-05-01 {hour}:00:00+00', '{shop}')", id + more)).await;
        }
    }
    for files in [false, true] {
        if files {
            session.until("SELECT sum(rows) = 10 FROM verus.files WHERE table_name = 'e'").await;
        }
        let lists = [
            ("SELECT array_agg(id) FROM e", "{1,6,2,7,3,8,4,9,5,10}"),
            ("SELECT string_agg(id::text, ',') FROM e WHERE s = 'a'", "1,2,3,4,5"),
            ("SELECT json_agg(id) FROM e WHERE s = 'a'", "[1, 2, 3, 4, 5]"),
            ("SELECT ARRAY(SELECT id FROM e WHERE s = 'b')", "{6,7,8,9,10}"),
            ("SELECT array_agg(id ORDER BY id DESC) FROM e WHERE s = 'a'", "{5,4,3,2,1}"),
            ("SELECT array_agg(id) FROM (SELECT id FROM e WHERE s = 'a' ORDER BY at LIMIT 3) AS q", "{4,2,1}"),
            ("SELECT array_agg(e.id) FROM e JOIN shops USING (s) WHERE name = 'two'", "{6,7,8,9,10}"),
            ("SELECT array_agg(id) FROM shops JOIN e USING (s)", "{1,6,2,7,3,8,4,9,5,10}"),
            ("SELECT string_agg(id::text, ',') || string_agg(id::text, '' ORDER BY at) || max(id) FROM e WHERE s = 'a'", "1,2,3,4,5421355"),
            ("SELECT (SELECT array_agg(id) FROM e WHERE e.s = shops.s) FROM shops WHERE name = 'one'", "{1,2,3,4,5}"),
            ("WITH q AS (SELECT id + 1 AS n FROM e WHERE s = 'a') SELECT array_agg(n) FROM q", "{2,3,4,5,6}"),
            ("SELECT array_agg(DISTINCT id % 3) || array_agg(id) FROM e WHERE s = 'a'", "{0,1,2,1,2,3,4,5}"),
        ];
        for (query, expected) in lists {
            assert_eq!(session.value(query).await, expected, "{query}, in files: {files}");
        }
        for (view, groups) in [("by_shop", 2), ("all_of_it", 1), ("by_day", 1), ("hops", 7), ("sessions", 1)] {
            assert_well(&session, view, groups).await;
        }
    }
    server.kill();
    server.restart().await;
    let session = server.connect().await;
    assert_well(&session, "by_shop", 2).await;
}

/// A view keeps the windows whose rows retention has removed. They are left out, and the note says so.
#[tokio::test(flavor = "multi_thread")]
async fn windows_that_outlive_their_rows_are_left_out() {
    let server = Server::start_with(Options::busy()).await;
    let session = server.connect().await;
    session
        .rows("CREATE TABLE e (id int, at timestamptz NOT NULL, WATERMARK FOR at AS at - INTERVAL '1 minute') WITH (retention = '10 days')")
        .await;
    for (view, query) in [
        ("hours", "SELECT TUMBLE(at, INTERVAL '1' HOUR) AS h, count(*) AS n FROM e GROUP BY h"),
        ("days", "SELECT at::date AS day, sum(id) AS s FROM e GROUP BY day"),
        ("months", "SELECT date_trunc('month', at) AS month, count(*) AS n FROM e GROUP BY month"),
        ("hops", "SELECT HOP(at, INTERVAL '1' HOUR, INTERVAL '3' HOUR) AS h, count(*) AS n FROM e GROUP BY h"),
        ("visits", "SELECT SESSION(at, INTERVAL '2' HOUR) AS visit, count(*) AS n FROM e GROUP BY visit"),
        ("above", "SELECT date_trunc('day', h) AS day, sum(n) AS n FROM hours GROUP BY day"),
        ("everything", "SELECT count(*) AS n FROM e"),
    ] {
        session.rows(&format!("CREATE MATERIALIZED VIEW {view} AS {query}")).await;
    }
    session
        .rows("INSERT INTO e SELECT i, '2024-01-01 00:00+00'::timestamptz + i * INTERVAL '1 hour' FROM generate_series(0, 47) AS i")
        .await;
    session.until("SELECT sum(rows) = 48 FROM verus.files WHERE table_name = 'e'").await;
    session.rows("INSERT INTO e VALUES (1000, '2024-03-01 00:00+00')").await;
    session.until("SELECT count(*) = 1 FROM e").await;
    for (view, groups) in [("hours", 1), ("days", 1), ("hops", 3), ("visits", 1), ("above", 3), ("everything", 1)] {
        assert_well(&session, view, groups).await;
    }
    assert_eq!(session.value("SELECT count(*) FROM hours").await, "49");
    let note = checked(&session, "hours").await[3].clone();
    assert!(note.contains("retention") && note.contains("2024-02-20 00:00:00+00"), "{note}");
    let note = checked(&session, "everything").await[3].clone();
    assert!(note.contains("retention") && note.contains("not compared"), "{note}");
    assert_eq!(checked(&session, "above").await[3], "NULL");
    assert_well(&session, "months", 1).await;
}

/// A view's query is one in UTC, whatever the session shows times in.
#[tokio::test(flavor = "multi_thread")]
async fn views_are_checked_in_utc() {
    let server = Server::start().await;
    let session = server.connect().await;
    session.rows("CREATE TABLE e (id int, at timestamptz NOT NULL, WATERMARK FOR at AS at - INTERVAL '1 minute')").await;
    session.rows("SET timezone = 'America/New_York'").await;
    session.rows("CREATE MATERIALIZED VIEW days AS SELECT date_trunc('day', at) AS day, count(*) AS n FROM e GROUP BY day").await;
    session
        .rows("CREATE MATERIALIZED VIEW texts AS SELECT at::text AS t, count(*) AS n FROM e WHERE at > '2024-05-01 01:00' GROUP BY t")
        .await;
    session.rows("INSERT INTO e VALUES (1, '2024-05-01 02:00+00'), (2, '2024-05-01 12:00+00'), (3, '2024-05-02 01:00+00')").await;
    assert_well(&session, "days", 2).await;
    assert_well(&session, "texts", 3).await;
}
