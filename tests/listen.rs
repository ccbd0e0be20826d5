//! LISTEN and NOTIFY between connections.

use std::time::Duration;

use crate::harness::{Options, SOON, Server};

const NEVER: Duration = Duration::from_millis(300);

fn told(channel: &str, payload: &str) -> Option<(String, String)> {
    Some((channel.to_owned(), payload.to_owned()))
}

#[tokio::test]
async fn what_commits_is_told_to_those_who_listen_while_they_are_idle() {
    let server = Server::start().await;
    let (mut one, mut other, sender) = (server.connect().await, server.connect().await, server.connect().await);
    one.rows("LISTEN alerts; LISTEN \"Other\"").await;
    other.rows("LISTEN other").await;
    sender.rows("NOTIFY alerts, 'first'").await;
    assert_eq!(one.notification(SOON).await, told("alerts", "first"));
    sender.rows("BEGIN; NOTIFY alerts, 'undone'; ROLLBACK; BEGIN; NOTIFY alerts, 'a'; NOTIFY alerts, 'a'").await;
    sender.rows("SAVEPOINT s; NOTIFY alerts, 'undone'; ROLLBACK TO s; NOTIFY \"Other\"").await;
    assert_eq!(one.notification(NEVER).await, None);
    sender.rows("COMMIT").await;
    assert_eq!(one.notification(SOON).await, told("alerts", "a"));
    assert_eq!(one.notification(SOON).await, told("Other", ""));
    sender.rows("SELECT pg_notify('alerts', i::text) FROM generate_series(1, 3) i").await;
    for payload in ["1", "2", "3"] {
        assert_eq!(one.notification(SOON).await, told("alerts", payload));
    }
    one.rows("UNLISTEN alerts").await;
    sender.rows("NOTIFY alerts; NOTIFY other, 'last'").await;
    assert_eq!(other.notification(SOON).await, told("other", "last"));
    assert_eq!(one.notification(NEVER).await, None);
}

#[tokio::test]
async fn a_transaction_is_not_disturbed_and_hears_itself() {
    let server = Server::start().await;
    let (mut one, sender) = (server.connect().await, server.connect().await);
    one.rows("BEGIN; LISTEN mine").await;
    sender.rows("NOTIFY mine, 'before'").await;
    one.rows("COMMIT; BEGIN; NOTIFY mine, 'own'").await;
    sender.rows("NOTIFY mine, 'other'").await;
    assert_eq!(one.notification(NEVER).await, None);
    one.rows("COMMIT").await;
    assert_eq!(one.notification(SOON).await, told("mine", "other"));
    assert_eq!(one.notification(SOON).await, told("mine", "own"));
    // Prepared statements and failed ones.
    let statement = sender.client.prepare("SELECT pg_notify($1, $2)").await.unwrap();
    sender.client.query(&statement, &[&"mine", &"extended"]).await.unwrap();
    assert_eq!(one.notification(SOON).await, told("mine", "extended"));
    assert_eq!(sender.failure("NOTIFY mine, 'lost'; SELECT 1/0").await.state, "22012");
    one.rows("DISCARD ALL").await;
    sender.rows("NOTIFY mine").await;
    assert_eq!(one.notification(NEVER).await, None);
}

#[tokio::test]
async fn who_does_not_read_makes_notifying_fail_and_nothing_else() {
    let env = vec![("VERUS_LIMITS_WIRE_NOTIFY_BYTES_MAX", "65536".to_owned())];
    let server = Server::start_with(Options { env, ..Options::default() }).await;
    let (mut slow, sender) = (server.connect().await, server.connect().await);
    slow.rows("LISTEN c").await;
    slow.rows("BEGIN").await;
    let text = "x".repeat(7_999);
    let mut sent = 0;
    let error = loop {
        match sender.query(&format!("NOTIFY c, '{sent}{}'", &text[4..])).await {
            Ok(_) => sent += 1,
            Err(error) => break error,
        }
        assert!(sent < 20);
    };
    assert_eq!((error.state.as_str(), error.message.as_str()), ("54000", "too many notifications in the NOTIFY queue"));
    sender.rows("CREATE TABLE t (a int); INSERT INTO t VALUES (1); NOTIFY d").await;
    // A transaction that cannot notify does not commit.
    assert_eq!(sender.failure(&format!("BEGIN; INSERT INTO t VALUES (2); NOTIFY c, '{text}'; COMMIT")).await.state, "54000");
    assert_eq!(sender.value("SELECT count(*) FROM t").await, "1");
    slow.rows("COMMIT").await;
    for _ in 0..sent {
        assert!(slow.notification(SOON).await.is_some());
    }
    sender.rows("NOTIFY c, 'again'").await;
    assert_eq!(slow.notification(SOON).await, told("c", "again"));
}
