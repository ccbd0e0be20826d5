//! Alerts over the wire, with a receiver of real messages.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

use crate::harness::{Options, Rows, SOON, Server, Session};

/// Takes POSTs and answers with a status that can be changed; 0 never answers.
struct Receiver {
    port: u16,
    status: Arc<AtomicU16>,
    taken: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Receiver {
    async fn start() -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (status, taken) = (Arc::new(AtomicU16::new(200)), Arc::new(Mutex::new(Vec::new())));
        let (answers, store) = (Arc::clone(&status), Arc::clone(&taken));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (answers, store) = (Arc::clone(&answers), Arc::clone(&store));
                tokio::spawn(async move {
                    let mut stream = BufReader::new(stream);
                    let (mut head, mut length) = (String::new(), 0);
                    loop {
                        let mut line = String::new();
                        if stream.read_line(&mut line).await.unwrap_or(0) == 0 || line == "\r\n" {
                            break;
                        }
                        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                            length = value.trim().parse().unwrap();
                        }
                        head.push_str(&line);
                    }
                    let mut body = vec![0; length];
                    if stream.read_exact(&mut body).await.is_err() || length == 0 {
                        return;
                    }
                    store.lock().push((head, serde_json::from_slice(&body).unwrap()));
                    match answers.load(Ordering::SeqCst) {
                        0 => std::future::pending().await,
                        status => {
                            let answer = format!("HTTP/1.1 {status} X\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 2\r\n\r\nno");
                            let _gone = stream.write_all(answer.as_bytes()).await;
                        }
                    }
                });
            }
        });
        Receiver { port, status, taken }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/hook/T0PS3CRET", self.port)
    }

    fn answer(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }

    /// The messages so far, once there are so many.
    async fn messages(&self, count: usize) -> Vec<Value> {
        let begin = Instant::now();
        while self.taken.lock().len() < count {
            assert!(begin.elapsed() < SOON, "{count} messages expected: {:?}", self.taken.lock());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.taken.lock().iter().map(|(_, body)| body.clone()).collect()
    }
}

fn open() -> Options {
    let env =
        [("VERUS_ALLOW_PRIVATE_CHANNELS", "true"), ("VERUS_LIMITS_ALERT_RETRY_MS_MIN", "100"), ("VERUS_LIMITS_ALERT_RETRY_MS_MAX", "400")];
    Options { template: false, env: env.map(|(key, value)| (key, value.to_owned())).to_vec() }
}

/// A table of orders, their count by minute, and an alert on minutes with fewer than two.
async fn shop(session: &Session, url: &str, clauses: &str) {
    session
        .rows(
            "CREATE TABLE orders (store_id text NOT NULL, at timestamptz NOT NULL, amount numeric(10,2),
                WATERMARK FOR at AS at - INTERVAL '0 seconds') WITH (partition_by = 'store_id');
             CREATE MATERIALIZED VIEW by_minute AS SELECT store_id, TUMBLE(at, INTERVAL '1 minute') AS window_start, count(*) AS orders
                FROM orders GROUP BY store_id, window_start",
        )
        .await;
    session
        .rows(&format!(
            "CREATE NOTIFICATION CHANNEL hook TYPE webhook WITH (url = '{url}', secret = 'hunter22', messages_per_minute = 6000)"
        ))
        .await;
    let query = "SELECT store_id, window_start, orders FROM by_minute WHERE orders < 2";
    session.rows(&format!("CREATE ALERT few {clauses} AS {query} WITH NOTIFICATION hook")).await;
}

async fn order(session: &Session, store: &str, times: &[&str]) {
    let rows: Vec<_> = times.iter().map(|time| format!("('{store}', '2024-05-01 {time}+00', 1)")).collect();
    session.rows(&format!("INSERT INTO orders VALUES {}", rows.join(", "))).await;
}

async fn until(session: &Session, query: &str, expected: &[&[&str]]) {
    let expected: Rows = expected.iter().map(|row| row.iter().map(|value| (*value).to_owned()).collect()).collect();
    let begin = Instant::now();
    loop {
        let rows = session.rows(query).await;
        if rows == expected {
            return;
        }
        if begin.elapsed() > SOON {
            let errors = session.rows("SELECT alert_name, last_error FROM verus.alerts").await;
            panic!("{query}\nexpected {expected:?}\n   found {rows:?}\n  errors {errors:?}");
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

const STATES: &str = "SELECT instance->>'store_id', state, data->>'orders' FROM verus.alert_instances ORDER BY 1";

#[tokio::test]
async fn an_alert_fires_when_a_window_closes_and_is_resolved() {
    let receiver = Receiver::start().await;
    let server = Server::start_with(open()).await;
    let mut session = server.connect().await;
    shop(&session, &receiver.url(), "").await;
    session.rows("LISTEN alerts; CREATE NOTIFICATION CHANNEL pg TYPE notify WITH (channel = 'alerts')").await;
    session
        .rows(
            "CREATE ALERT listened AS SELECT store_id, window_start, orders FROM by_minute WHERE orders < 2
             WITH NOTIFICATION pg, hook",
        )
        .await;
    session.rows("DROP ALERT listened").await;
    order(&session, "a", &["10:00:10", "10:00:20", "10:01:10"]).await;
    until(&session, STATES, &[&["a", "ok", "2"]]).await;
    // The minute of 10:01 has one order, but is open.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(receiver.taken.lock().is_empty());
    order(&session, "a", &["10:02:00", "10:02:30"]).await;
    until(&session, STATES, &[&["a", "firing", "1"]]).await;
    order(&session, "a", &["10:03:00", "10:03:30"]).await;
    until(&session, STATES, &[&["a", "resolved", "2"]]).await;
    let messages = receiver.messages(2).await;
    let told = |index: usize, key: &str| messages[index][key].as_str().unwrap_or_default().to_owned();
    assert_eq!((told(0, "kind"), told(1, "kind")), ("firing".to_owned(), "resolved".to_owned()));
    assert_eq!(messages[0]["instance"]["store_id"], "a");
    assert_eq!(messages[0]["values"]["orders"], 1);
    assert_eq!((told(0, "window_start"), told(0, "at")), ("2024-05-01T10:01:00Z".to_owned(), "2024-05-01T10:02:00Z".to_owned()));
    assert_ne!(told(0, "id"), told(1, "id"));
    let head = receiver.taken.lock()[0].0.to_ascii_lowercase();
    assert!(head.contains(&format!("idempotency-key: {}", told(0, "id"))) && head.contains("x-verus-signature: sha256="), "{head}");
    until(
        &session,
        "SELECT from_state, to_state, window_start FROM verus.alert_history ORDER BY at",
        &[&["ok", "firing", "2024-05-01 10:01:00+00"], &["firing", "resolved", "2024-05-01 10:02:00+00"]],
    )
    .await;
    until(&session, "SELECT state, count(*) FROM verus.notifications GROUP BY 1", &[&["delivered", "2"]]).await;
    session.rows("TEST NOTIFICATION CHANNEL pg; TEST NOTIFICATION CHANNEL hook").await;
    let (channel, payload) = session.notification(SOON).await.unwrap();
    assert_eq!((channel.as_str(), serde_json::from_str::<Value>(&payload).unwrap()["kind"].as_str()), ("alerts", Some("test")));
    assert_eq!(receiver.messages(3).await[2]["kind"], "test");
    let past = session.rows("BACKTEST ALERT few FROM '2024-05-01 10:00+00' TO '2024-05-01 11:00+00'").await;
    assert_eq!(past.iter().map(|row| row[4].as_str()).collect::<Vec<_>>(), ["firing", "resolved"]);
    let error = session.failure("DROP MATERIALIZED VIEW by_minute").await;
    assert_eq!((error.state.as_str(), error.detail.as_str()), ("2BP01", "Alert few depends on materialized view by_minute."));
}

#[tokio::test]
async fn nothing_is_lost_or_told_twice_when_the_server_is_killed() {
    let receiver = Receiver::start().await;
    receiver.answer(500);
    let mut server = Server::start_with(open()).await;
    let session = server.connect().await;
    shop(&session, &receiver.url(), "").await;
    order(&session, "a", &["10:00:10", "10:01:10"]).await;
    order(&session, "b", &["10:00:10", "10:01:10"]).await;
    until(&session, STATES, &[&["a", "firing", "1"], &["b", "firing", "1"]]).await;
    receiver.messages(3).await;
    for kill in 0..4 {
        server.kill();
        server.restart().await;
        let session = server.connect().await;
        until(&session, "SELECT state, count(*) FROM verus.alert_instances GROUP BY 1", &[&["firing", "2"]]).await;
        let minute = kill + 2;
        order(&session, "a", &[&format!("10:{minute:02}:00")]).await;
    }
    let session = server.connect().await;
    until(&session, "SELECT state, count(*) FROM verus.notifications GROUP BY 1", &[&["pending", "2"]]).await;
    receiver.answer(200);
    until(&session, "SELECT state, count(*) FROM verus.notifications GROUP BY 1", &[&["delivered", "2"]]).await;
    let mut ids: Vec<String> = receiver.messages(1).await.iter().map(|message| message["id"].to_string()).collect();
    assert!(ids.len() > 2);
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 2, "one id for each message, however often it was sent");
    assert_eq!(session.value("SELECT count(*) FROM verus.alert_history").await, "2");
}

#[tokio::test]
async fn a_dead_channel_delays_nothing() {
    let (dead, living) = (Receiver::start().await, Receiver::start().await);
    dead.answer(0);
    let server = Server::start_with(open()).await;
    let session = server.connect().await;
    shop(&session, &dead.url(), "").await;
    session.rows(&format!("CREATE NOTIFICATION CHANNEL chat TYPE slack WITH (url = '{}')", living.url())).await;
    let query = "SELECT store_id, window_start, orders FROM by_minute WHERE orders < 2";
    session.rows("DROP ALERT few").await;
    session.rows(&format!("CREATE ALERT other AS {query} WITH NOTIFICATION hook, chat")).await;
    order(&session, "a", &["10:00:10", "10:01:10"]).await;
    let message = &living.messages(1).await[0];
    // The first attempt at the dead one has not come to its end yet.
    let dead_one = "SELECT concat_ws('/', state, attempts) FROM verus.notifications WHERE channel_name = 'hook'";
    assert_eq!(session.value(dead_one).await, "pending/0");
    assert_eq!(message["text"], "other fires: store_id = a");
    assert_eq!(message["blocks"][0]["type"], "header");
    living.answer(302);
    let error = session.failure("TEST NOTIFICATION CHANNEL chat").await;
    assert_eq!(error.state, "08006");
    assert!(error.detail.contains("302") && error.detail.contains("Redirects are not followed"), "{}", error.detail);
}

#[tokio::test]
async fn late_rows_correct_what_was_told() {
    let receiver = Receiver::start().await;
    let server = Server::start_with(open()).await;
    let session = server.connect().await;
    shop(&session, &receiver.url(), "").await;
    order(&session, "a", &["10:00:10", "10:01:10"]).await;
    until(&session, STATES, &[&["a", "firing", "1"]]).await;
    session.rows("SET verus.late_rows = 'apply'").await;
    order(&session, "a", &["10:00:30"]).await;
    until(&session, STATES, &[&["a", "resolved", "2"]]).await;
    let messages = receiver.messages(2).await;
    assert_eq!(messages[1]["kind"], "correction");
    assert_eq!((&messages[1]["told"]["orders"], &messages[1]["values"]["orders"]), (&Value::from(1), &Value::from(2)));
    assert_eq!(messages[1]["reason"], "corrected");
}

#[tokio::test]
async fn pending_silence_no_data_and_disabling() {
    let receiver = Receiver::start().await;
    let server = Server::start_with(open()).await;
    let session = server.connect().await;
    shop(&session, &receiver.url(), "FOR INTERVAL '2 minutes' ON NO DATA ALERT").await;
    order(&session, "a", &["10:00:10", "10:00:20", "10:01:10"]).await;
    until(&session, STATES, &[&["a", "ok", "2"]]).await;
    session.rows("SILENCE ALERT few FOR INTERVAL '1 hour'").await;
    order(&session, "a", &["10:02:10"]).await;
    until(&session, STATES, &[&["a", "pending", "1"]]).await;
    // Minutes 3 and 4 have no rows at all.
    order(&session, "a", &["10:05:10"]).await;
    until(&session, STATES, &[&["a", "firing", "NULL"]]).await;
    assert_eq!(session.value("SELECT reason FROM verus.alert_instances").await, "no data");
    assert_eq!(session.value("SELECT state FROM verus.alerts").await, "firing");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(receiver.taken.lock().is_empty());
    session.rows("SILENCE ALERT few FOR INTERVAL '1 millisecond'").await;
    assert_eq!(receiver.messages(1).await[0]["kind"], "firing");
    session.rows("ALTER ALERT few DISABLE").await;
    until(&session, STATES, &[&["a", "ok", "NULL"]]).await;
    order(&session, "a", &["10:09:10"]).await;
    session.rows("ALTER ALERT few ENABLE").await;
    order(&session, "a", &["10:10:10"]).await;
    // It begins with the newest closed window.
    until(&session, STATES, &[&["a", "pending", "1"]]).await;
}

#[tokio::test]
async fn series_that_have_ended_make_room() {
    let receiver = Receiver::start().await;
    let mut options = open();
    options.env.push(("VERUS_LIMITS_ALERT_INSTANCES_MAX", "2".to_owned()));
    let mut server = Server::start_with(options).await;
    let session = server.connect().await;
    shop(&session, &receiver.url(), "").await;
    order(&session, "a", &["10:00:10", "10:00:20", "10:01:00"]).await;
    until(&session, STATES, &[&["a", "ok", "2"]]).await;
    order(&session, "b", &["10:00:10", "10:00:20", "10:01:00"]).await;
    until(&session, STATES, &[&["a", "ok", "2"], &["b", "ok", "2"]]).await;
    order(&session, "c", &["10:05:10", "10:05:20", "10:06:00"]).await;
    until(&session, STATES, &[&["b", "ok", "2"], &["c", "ok", "2"]]).await;
    order(&session, "d", &["10:07:10", "10:08:00"]).await;
    until(&session, STATES, &[&["c", "ok", "2"], &["d", "firing", "1"]]).await;
    // What a kill finds under way may be sent again.
    until(&session, "SELECT state, count(*) FROM verus.notifications GROUP BY 1", &[&["delivered", "1"]]).await;
    drop(session);
    server.kill();
    server.restart().await;
    let session = server.connect().await;
    until(&session, STATES, &[&["c", "ok", "2"], &["d", "firing", "1"]]).await;
    order(&session, "e", &["10:09:10", "10:10:00"]).await;
    until(&session, STATES, &[&["d", "firing", "1"], &["e", "firing", "1"]]).await;
    order(&session, "f", &["10:11:10", "10:12:00"]).await;
    until(&session, "SELECT last_error FROM verus.alerts", &[&["the alert has too many instances"]]).await;
    assert_eq!(receiver.messages(2).await.len(), 2);
}

#[tokio::test]
async fn partitions_that_come_later_begin_with_their_newest_window() {
    let receiver = Receiver::start().await;
    let server = Server::start_with(open()).await;
    let session = server.connect().await;
    shop(&session, &receiver.url(), "").await;
    order(&session, "a", &["10:05:10", "10:05:20", "10:06:10"]).await;
    until(&session, STATES, &[&["a", "ok", "2"]]).await;
    // Its windows before the first evaluation are history, but for the newest.
    order(&session, "b", &["10:01:10", "10:02:10", "10:03:10", "10:04:10"]).await;
    until(&session, STATES, &[&["a", "ok", "2"], &["b", "firing", "1"]]).await;
    let fired = "SELECT instance->>'store_id', to_char(window_start, 'HH24:MI') FROM verus.alert_history ORDER BY 1, 2";
    until(&session, fired, &[&["b", "10:03"]]).await;
    // What closed since then is seen, however many windows at once.
    order(&session, "c", &["10:06:10", "10:07:10", "10:07:20", "10:08:10", "10:09:10"]).await;
    until(&session, fired, &[&["b", "10:03"], &["c", "10:06"], &["c", "10:07"], &["c", "10:08"]]).await;
}

#[tokio::test]
async fn every_looks_at_the_present_without_a_window() {
    let receiver = Receiver::start().await;
    let server = Server::start_with(open()).await;
    let session = server.connect().await;
    shop(&session, &receiver.url(), "").await;
    session.rows("CREATE TABLE stock (product text PRIMARY KEY, amount integer)").await;
    session.rows("INSERT INTO stock VALUES ('x', 5), ('y', 0)").await;
    session
        .rows(
            "CREATE ALERT empty EVERY INTERVAL '200 milliseconds' REPEAT EVERY INTERVAL '1 second' AS
             SELECT product, amount FROM stock WHERE amount = 0 WITH NOTIFICATION hook",
        )
        .await;
    let state = "SELECT instance::text, state FROM verus.alert_instances WHERE alert_name = 'empty'";
    let rows = r#"{"amount":0,"product":"y"}"#;
    let begin = Instant::now();
    while session.rows(state).await.is_empty() {
        assert!(begin.elapsed() < SOON, "{rows}");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    let messages = receiver.messages(2).await;
    assert_eq!((&messages[0]["kind"], &messages[1]["kind"]), (&Value::from("firing"), &Value::from("reminder")));
    session.rows("UPDATE stock SET amount = 3").await;
    until(&session, "SELECT state FROM verus.alert_instances WHERE alert_name = 'empty'", &[&["resolved"]]).await;
}

#[tokio::test]
async fn private_addresses_are_refused_and_secrets_shown_nowhere() {
    let receiver = Receiver::start().await;
    let mut server = Server::start().await;
    let session = server.connect().await;
    shop(&session, &receiver.url(), "").await;
    for (name, url) in [
        ("local", format!("http://localhost:{}/T0PS3CRET", receiver.port)),
        ("mapped", format!("http://[::ffff:127.0.0.1]:{}/T0PS3CRET", receiver.port)),
        ("metadata", "http://169.254.169.254/T0PS3CRET".to_owned()),
        ("decimal", format!("http://2130706433:{}/T0PS3CRET", receiver.port)),
    ] {
        session.rows(&format!("CREATE NOTIFICATION CHANNEL {name} TYPE webhook WITH (url = '{url}')")).await;
        let error = session.failure(&format!("TEST NOTIFICATION CHANNEL {name}")).await;
        assert!(error.state == "08006" && error.detail.contains("no address that channels may call"), "{}", error.detail);
    }
    assert!(receiver.taken.lock().is_empty());
    let mut texts = vec![server.log()];
    for query in [
        "SELECT * FROM verus.notification_channels",
        "SELECT * FROM verus.notifications",
        "SELECT query FROM verus.sessions",
        "SHOW CREATE NOTIFICATION CHANNEL hook",
        "SHOW CREATE ALERT few",
        "SELECT * FROM verus.alerts",
    ] {
        texts.push(format!("{:?}", session.rows(query).await));
    }
    for text in &texts {
        assert!(!text.contains("T0PS3CRET") && !text.contains("hunter22"), "{text}");
    }
    let failing = session.failure("CREATE NOTIFICATION CHANNEL x TYPE webhook WITH (url = 'hunter22')").await;
    assert!(!failing.message.contains("hunter22"));
    let watcher = server.connect().await;
    let shown = watcher.rows("SELECT query FROM verus.sessions").await;
    assert!(!format!("{shown:?}").contains("hunter22"), "{shown:?}");
    // Nor anywhere in the data directory.
    server.kill();
    let mut open = vec![server.data_dir()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let bytes = std::fs::read(&path).unwrap();
            for secret in ["T0PS3CRET", "hunter22"] {
                let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
                assert!(!found, "{secret} in {}", path.display());
            }
        }
    }
    server.restart().await;
    let session = server.connect().await;
    assert_eq!(session.value("SELECT count(*) FROM verus.notification_channels").await, "5");
}
