//! CHECK MATERIALIZED VIEW finds a correct view correct.

use crate::harness::{Options, Server, Session};

/// Groups, differing ones, whether it is well, and the note.
async fn checked(session: &Session, view: &str) -> [String; 4] {
    let row = session.rows(&format!("CHECK MATERIALIZED VIEW {view}")).await.remove(0);
    [1, 2, 3, 9].map(|column| row[column].clone())
}

async fn assert_well(session: &Session, view: &str, groups: usize) {
    assert_eq!(checked(session, view).await[..3], [groups.to_string(), "0".to_owned(), "t".to_owned()], "{view}");
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
