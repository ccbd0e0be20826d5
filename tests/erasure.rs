//! Erasure requests: what was deleted stays deleted, whatever happens to the server.

use std::time::Duration;

use crate::harness::{Options, Server};

/// Erased events are sent again: before a restart, after one that replays the deletion, and after one whose log has been cut.
#[tokio::test(flavor = "multi_thread")]
async fn an_erased_event_that_is_sent_again_is_a_duplicate() {
    for key in ["bigint", "text", "uuid"] {
        let mut server = Server::start_with(Options::busy()).await;
        let mut session = server.connect().await;
        session
            .rows(&format!(
                "CREATE TABLE events (id {key}, at timestamptz NOT NULL, who text, WATERMARK FOR at AS at - INTERVAL '5 minutes') \
                 WITH (dedup_key = 'id', dedup_window = '1 hour')"
            ))
            .await;
        let value = |id: u32| match key {
            "uuid" => format!("'{}'", uuid::Uuid::from_u128(id.into())),
            "text" => format!("'event {id}'"),
            _ => id.to_string(),
        };
        let insert = |ids: std::ops::Range<u32>, who: &str| {
            let rows: Vec<String> = ids.map(|id| format!("({}, '2024-05-01 12:{:02}:00+00', '{who}')", value(id), 10 + id)).collect();
            format!("INSERT INTO events VALUES {}", rows.join(", "))
        };
        session.rows(&insert(0..40, "ada")).await;
        // A row that is late: its key is in the companion only, and goes from there.
        let late = format!("INSERT INTO events VALUES ({}, '2024-05-01 12:05:00+00', 'eve')", value(50));
        session.rows(&late).await;
        session.rows("INSERT INTO events VALUES (NULL, '2024-05-01 12:50:00+00', 'bob')").await;
        assert_eq!(session.value("SELECT count(*) FROM \"events$late\"").await, "1");
        session.rows("DELETE FROM events WHERE who = 'ada'").await;
        session.rows("DELETE FROM \"events$late\"").await;
        for round in 0..4 {
            session.rows(&insert(0..40, "ada")).await;
            session.rows(&late).await;
            assert_eq!(session.value("SELECT count(*) FROM events WHERE who <> 'bob'").await, "0", "{key}, round {round}: they came back");
            assert_eq!(session.value("SELECT count(*) FROM \"events$late\"").await, "0", "{key}, round {round}");
            // From the second round on the log is cut: the rows and the record of their deletion go.
            for _ in 0..round * 3 {
                session.rows("INSERT INTO events VALUES (NULL, '2024-05-01 12:50:00+00', 'bob')").await;
                tokio::time::sleep(Duration::from_millis(150)).await;
            }
            server.kill();
            server.restart().await;
            session = server.connect().await;
        }
        // What has left the window is as new, and an emptied table has nothing to remember.
        session.rows("INSERT INTO events VALUES (NULL, '2024-05-01 14:50:00+00', 'bob')").await;
        session.rows("SET verus.late_rows = 'apply'").await;
        session.rows(&insert(0..1, "ada")).await;
        assert_eq!(session.value("SELECT count(*) FROM events WHERE who = 'ada'").await, "1", "{key}: beyond the window");
        session.rows("TRUNCATE events").await;
        session.rows(&insert(0..40, "ada")).await;
        assert_eq!(session.value("SELECT count(*) FROM events").await, "40", "{key}: an emptied table");
        tokio::time::sleep(Duration::from_millis(200)).await;
        session.rows("DELETE FROM events WHERE who = 'ada'").await;
        session.rows("TRUNCATE events").await;
        server.kill();
        server.restart().await;
        session = server.connect().await;
        session.rows(&insert(0..40, "ada")).await;
        assert_eq!(session.value("SELECT count(*) FROM events").await, "40", "{key}: an emptied table, after a restart");
    }
}
