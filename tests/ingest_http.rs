//! `POST /v1/events`: over real HTTP, with wrong input of every kind, and with kills between acknowledged requests.

use std::io::Write as _;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Options, Server, Session};

/// A keep-alive connection.
struct Client {
    socket: TcpStream,
    rest: Vec<u8>,
}

/// What came back.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub code: u16,
    pub head: String,
    pub body: Value,
}

impl Client {
    async fn open(server: &Server) -> Client {
        Client { socket: TcpStream::connect(("127.0.0.1", server.http)).await.unwrap(), rest: Vec::new() }
    }

    /// None when the connection broke.
    async fn try_send(&mut self, method: &str, path: &str, headers: &str, body: &[u8]) -> Option<Answer> {
        let head = format!("{method} {path} HTTP/1.1\r\nHost: verus\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
        self.socket.write_all(head.as_bytes()).await.ok()?;
        // A server that refuses the head may close before the body is sent.
        let sent = self.socket.write_all(body).await;
        let answer = self.answer().await;
        answer.or_else(|| panic_unless(sent.is_err()))
    }

    async fn answer(&mut self) -> Option<Answer> {
        let end = loop {
            if let Some(at) = self.rest.windows(4).position(|window| window == b"\r\n\r\n") {
                break at;
            }
            if self.socket.read_buf(&mut self.rest).await.unwrap_or(0) == 0 {
                return None;
            }
        };
        let head = String::from_utf8(self.rest.drain(..end + 4).collect()).unwrap().to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |length| length.parse().unwrap());
        while self.rest.len() < length {
            if self.socket.read_buf(&mut self.rest).await.unwrap_or(0) == 0 {
                return None;
            }
        }
        let body: Vec<u8> = self.rest.drain(..length).collect();
        let code = head.split(' ').nth(1).unwrap().parse().unwrap();
        Some(Answer { code, head, body: serde_json::from_slice(&body).unwrap_or(Value::Null) })
    }
}

fn panic_unless(broken: bool) -> Option<Answer> {
    assert!(broken, "the server closed without an answer");
    None
}

async fn send(server: &Server, method: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
    Client::open(server).await.try_send(method, path, headers, body).await.unwrap()
}

pub async fn post(server: &Server, path: &str, headers: &str, body: impl AsRef<[u8]>) -> Answer {
    send(server, "POST", path, headers, body.as_ref()).await
}

async fn shop() -> (Server, Session) {
    let server = Server::start_with(Options { template: true, ..Options::default() }).await;
    let session = server.connect().await;
    (server, session)
}

pub fn event(id: u32, more: &str) -> String {
    format!(
        "{{\"event_id\":\"00000000-0000-4000-8000-{id:012}\",\"event_type\":\"purchase\",\"event_time\":\"2024-05-01T10:00:00Z\",\
         \"session_id\":\"s\",\"store_id\":\"a\"{more}}}"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_there_when_they_are_answered() {
    let (server, session) = shop().await;
    let one = event(1, ",\"revenue\":12.50,\"quantity\":2,\"colour\":\"red\",\"properties\":{\"size\":\"L\"}");
    let answer = post(&server, "/v1/events", "Content-Type: application/json\r\n", &one).await;
    assert_eq!((answer.code, &answer.body), (200, &json!({"accepted": 1, "duplicates": 0, "late": 0})), "{answer:?}");
    let row = session
        .value("SELECT concat_ws('/', revenue, quantity, properties, event_date, server_timestamp > '2024-06-01') FROM events")
        .await;
    assert_eq!(row, r#"12.50/2/{"size": "L", "colour": "red"}/2024-05-01/t"#);
    assert_eq!(session.value("SELECT total_revenue FROM mv_revenue_by_minute").await, "12.50");

    let array = format!("[{},{},{}]", event(1, ""), event(2, ""), event(3, ",\"event_time\":\"2024-05-01T09:00:00Z\""));
    // What `curl -d` says of any body.
    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    let answer = post(&server, "/v1/events/events", form, &array).await;
    assert_eq!((answer.code, &answer.body), (200, &json!({"accepted": 1, "duplicates": 1, "late": 1})));
    assert_eq!(session.value("SELECT count(*) FROM events$late").await, "1");

    let lines: String = (10..1_010).map(|id| event(id, ",\"revenue\":1") + "\n").collect();
    let answer = post(&server, "/v1/events", "Content-Type: application/x-ndjson\r\n", &lines).await;
    assert_eq!(answer.body["accepted"], 1_000);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(lines.replace("8000-00000000", "8001-00000000").as_bytes()).unwrap();
    let answer = post(&server, "/v1/events", "Content-Encoding: gzip\r\n", gzip.finish().unwrap()).await;
    assert_eq!(answer.body["accepted"], 1_000, "{answer:?}");
    let zstd = zstd::encode_all(lines.replace("8000-00000000", "8002-00000000").as_bytes(), 3).unwrap();
    assert_eq!(post(&server, "/v1/events", "Content-Encoding: zstd\r\n", zstd).await.body["accepted"], 1_000);
    assert_eq!(session.value("SELECT count(*) FROM events").await, "3002");
    assert_eq!(session.value("SELECT total_revenue FROM mv_revenue_by_minute").await, "3012.50");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_event_is_refused_and_the_rest_is_kept() {
    let (mut server, session) = shop().await;
    assert_eq!(session.value("SELECT count(*) FROM verus.rejected_events").await, "0");
    let bad = [
        event(1, ""),
        event(2, ",\"event_type\":\"\""),
        event(3, ",\"quantity\":\"many\""),
        event(4, ",\"event_time\":\"2124-05-01T10:00:00Z\""),
        "7".to_owned(),
        "{\"event_id\":\"00000000-0000-4000-8000-000000000005\"}".to_owned(),
        event(6, ",\"event_date\":\"2024-05-01\""),
    ];
    let answer = post(&server, "/v1/events", "", bad.join("\n")).await;
    assert_eq!((answer.code, &answer.body["accepted"]), (207, &json!(2)), "{answer:?}");
    let refused: Vec<_> =
        answer.body["refused"].as_array().unwrap().iter().map(|one| (one["position"].clone(), one["code"].clone())).collect();
    let expected = [(1, "23514"), (2, "22P02"), (3, "22008"), (4, "22023"), (5, "23502")];
    assert_eq!(refused, expected.map(|(position, code)| (json!(position), json!(code))));
    assert_eq!(answer.body["refused"][1]["context"], "column quantity: \"many\"");

    let answer = post(&server, "/v1/events", "", event(7, ",\"event_type\":\"\"")).await;
    assert_eq!((answer.code, &answer.body["accepted"]), (422, &json!(0)));
    server.kill();
    server.restart().await;
    let session = server.connect().await;
    let kept = "SELECT string_agg(concat_ws('|', table_name, source, position, sqlstate, client), ';' ORDER BY rejected_at, position) \
                FROM verus.rejected_events";
    assert_eq!(
        session.value(kept).await,
        "events|http|1|23514|127.0.0.0/24;events|http|2|22P02|127.0.0.0/24;events|http|3|22008|127.0.0.0/24;\
         events|http|4|22023|127.0.0.0/24;events|http|5|23502|127.0.0.0/24;events|http|0|23514|127.0.0.0/24"
    );
    assert_eq!(session.value("SELECT event FROM verus.rejected_events WHERE sqlstate = '22P02'").await, bad[2]);
    let check = session.query("CHECK MATERIALIZED VIEW mv_revenue_by_minute").await.unwrap();
    assert_eq!(format!("{check:?}").matches("\"6\"").count(), 1, "{check:?}");
    for wrong in ["INSERT INTO verus.rejected_events VALUES (now())", "DROP TABLE verus.rejected_events", "TRUNCATE verus.rejected_events"]
    {
        assert_eq!(session.failure(wrong).await.state, "42501", "{wrong}");
    }
    session.rows("DELETE FROM verus.rejected_events WHERE sqlstate = '22P02'").await;
    assert_eq!(session.value("SELECT count(*) FROM verus.rejected_events").await, "5");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_requests_have_their_codes() {
    let (server, session) = shop().await;
    session.rows("CREATE TABLE plain (id bigint PRIMARY KEY, note text)").await;
    let good = event(1, "");
    let cases: &[(&str, &str, &[u8], u16, &str)] = &[
        ("/v1/events", "", b"{\"event_id\":", 400, "22P02"),
        ("/v1/events", "", b"", 400, "22P02"),
        ("/v1/events", "", b"\xff\xfe", 400, "22021"),
        ("/v1/events", "Content-Encoding: gzip\r\n", b"not gzip", 400, "22P03"),
        ("/v1/events", "Content-Encoding: zstd\r\n", b"not zstd", 400, "22P03"),
        ("/v1/events", "Content-Encoding: br\r\n", good.as_bytes(), 415, "0A000"),
        ("/v1/events", "Content-Type: text/csv\r\n", good.as_bytes(), 415, "0A000"),
        ("/v1/events", "Idempotency-Key:  \r\n", good.as_bytes(), 400, "22023"),
        ("/v1/events/nothing", "", good.as_bytes(), 404, "42P01"),
        ("/v1/events/events$late", "", good.as_bytes(), 403, "42501"),
        ("/v1/events/mv_revenue_by_day", "", good.as_bytes(), 400, "42809"),
    ];
    for (path, headers, body, code, state) in cases {
        let answer = post(&server, path, headers, body).await;
        assert_eq!((answer.code, answer.body["code"].as_str()), (*code, Some(*state)), "{path} {headers} {answer:?}");
    }
    let answer = post(&server, "/v1/events", "", format!("[{good},\n{{\"event_id\" 1}}]")).await;
    assert_eq!(answer.body["context"], "JSON data, event 1, line 2, character 13");
    // Of NDJSON only the line is refused.
    let answer = post(&server, "/v1/events", "", format!("{good}\n{{\"event_id\" 1}}\n{good}\n")).await;
    assert_eq!((answer.code, &answer.body["accepted"], &answer.body["duplicates"]), (207, &json!(1), &json!(1)), "{answer:?}");
    assert_eq!((&answer.body["refused"][0]["position"], &answer.body["refused"][0]["code"]), (&json!(1), &json!("22P02")));
    assert_eq!(session.value("SELECT event FROM verus.rejected_events").await, "{\"event_id\" 1}");
    session.rows("DELETE FROM events").await;
    assert_eq!(send(&server, "GET", "/v1/events", "", b"").await.code, 405);
    assert_eq!(post(&server, "/v1/events/plain", "", "{\"id\":1,\"note\":\"x\"}").await.code, 200);
    assert_eq!(post(&server, "/v1/events/plain", "", "{\"id\":1,\"note\":\"x\"}").await.code, 409);
    assert_eq!(post(&server, "/v1/events/plain", "", "{\"id\":2,\"other\":\"x\"}").await.code, 422);
    assert_eq!(session.value("SELECT count(*) FROM events").await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_and_memory_are_bounded() {
    let env = [("VERUS_LIMITS_INGEST_BODY_BYTES_MAX", "100000"), ("VERUS_LIMITS_INGEST_IN_FLIGHT_BYTES_MAX", "150000")];
    let env = env.map(|(key, value)| (key, value.to_owned())).to_vec();
    let server = Server::start_with(Options { template: true, env }).await;
    let long = format!("{}{}", event(1, ""), " ".repeat(100_000));
    assert_eq!(post(&server, "/v1/events", "", &long).await.code, 413);
    let bomb = zstd::encode_all(&vec![b' '; 50_000_000][..], 3).unwrap();
    let answer = post(&server, "/v1/events", "Content-Encoding: zstd\r\n", bomb).await;
    assert_eq!((answer.code, answer.body["code"].as_str()), (413, Some("54000")), "{answer:?}");

    // A body that is still coming takes its room: two of them do not fit.
    let mut slow = Client::open(&server).await;
    let head = "POST /v1/events HTTP/1.1\r\nHost: verus\r\nContent-Length: 90000\r\n\r\n";
    slow.socket.write_all(head.as_bytes()).await.unwrap();
    slow.socket.write_all(&vec![b' '; 89_000]).await.unwrap();
    let big = format!("{}{}", event(2, ""), " ".repeat(80_000));
    let session = server.connect().await;
    let size = "SELECT value::bigint FROM verus.metrics WHERE name = 'verus_http_bodies_size_bytes'";
    while session.value(size).await != "89000" {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let refused = post(&server, "/v1/events", "", &big).await;
    assert_eq!((refused.code, refused.body["code"].as_str()), (429, Some("53000")));
    assert!(refused.head.contains("retry-after: 1"), "{refused:?}");
    drop(slow);
    let mut code = 0;
    for _ in 0..200 {
        code = post(&server, "/v1/events", "", &big).await.code;
        if code == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(code, 200);
    let metric = "SELECT sum(value)::bigint > 0 FROM verus.metrics WHERE labels LIKE '%limits.ingest.in_flight_bytes_max%'";
    assert_eq!(session.value(metric).await, "t");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_key_answers_the_same_and_inserts_nothing() {
    let server = Server::start_with(Options::busy()).await;
    let mut server = server;
    let session = server.connect().await;
    // No dedup_key: only the key of the request keeps it from being there twice.
    session
        .rows("CREATE TABLE e (id bigint NOT NULL CHECK (id > 0), at timestamptz NOT NULL, WATERMARK FOR at AS at - INTERVAL '1 hour')")
        .await;
    let body = "[{\"id\":1,\"at\":\"2024-05-01T10:00:00Z\"},{\"id\":-1,\"at\":\"2024-05-01T10:00:00Z\"}]";
    let first = post(&server, "/v1/events/e", "Idempotency-Key: k'1\r\n", body).await;
    assert_eq!((first.code, &first.body["refused"][0]["code"]), (207, &json!("23514")));
    for round in 0..2 {
        let again = post(&server, "/v1/events/e", "Idempotency-Key: k'1\r\n", body).await;
        assert_eq!((again.code, &again.body), (first.code, &first.body));
        assert!(again.head.contains("idempotency-replayed: true"));
        assert_eq!(post(&server, "/v1/events/e", "Idempotency-Key: k'1\r\n", "{}").await.code, 422);
        if round == 0 {
            server.kill();
            server.restart().await;
        }
    }
    let session = server.connect().await;
    assert_eq!(session.value("SELECT count(*) FROM e").await, "1");
    assert_eq!(session.value("SELECT count(*) FROM verus.rejected_events").await, "1");
    assert_eq!(post(&server, "/v1/events/e", "Idempotency-Key: k2\r\n", body).await.code, 207);
    assert_eq!(session.value("SELECT count(*) FROM e").await, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_password_a_token_is_needed_and_confined_to_its_store() {
    let env = vec![("VERUS_PASSWORD", "hunter2".to_owned()), ("VERUS_HTTP_ORIGINS", "https://shop.example".to_owned())];
    let mut server = Server::start_with(Options { template: true, env }).await;
    let session = server.connect().await;
    let token = |rows: crate::harness::Rows| rows[0][1].clone();
    let all = token(session.rows("CREATE INGEST TOKEN everything").await);
    let one = token(session.rows("CREATE INGEST TOKEN berlin FOR STORE 'a'").await);
    assert_eq!(session.failure("CREATE INGEST TOKEN berlin").await.state, "42710");
    let shown = "SELECT string_agg(concat_ws(':', name, store), ',' ORDER BY name) FROM verus.ingest_tokens";
    assert_eq!(session.value(shown).await, "berlin:a,everything");
    server.kill();
    server.restart().await;
    let session = server.connect().await;
    let bearer = |token: &str| format!("Authorization: Bearer {token}\r\n");

    let answer = post(&server, "/v1/events", "", event(1, "")).await;
    assert_eq!((answer.code, answer.body["code"].as_str()), (401, Some("28000")));
    assert!(answer.head.contains("www-authenticate: bearer"), "{answer:?}");
    assert_eq!(post(&server, "/v1/events", &bearer("verus_00"), event(1, "")).await.code, 401);
    assert_eq!(post(&server, "/v1/events", &bearer(&all), event(1, "").replace("\"a\"", "\"b\"")).await.code, 200);
    // verus:hunter2
    assert_eq!(post(&server, "/v1/events", "Authorization: Basic dmVydXM6aHVudGVyMg==\r\n", event(2, "")).await.code, 200);
    let events = [event(3, ""), event(4, "").replace(",\"store_id\":\"a\"", ""), event(5, "").replace("\"a\"", "\"b\"")];
    let answer = post(&server, "/v1/events", &bearer(&one), events.join("\n")).await;
    assert_eq!((answer.code, &answer.body["accepted"]), (207, &json!(2)), "{answer:?}");
    assert_eq!((&answer.body["refused"][0]["position"], &answer.body["refused"][0]["code"]), (&json!(2), &json!("42501")));
    assert_eq!(session.value("SELECT string_agg(store_id, '' ORDER BY store_id) FROM events").await, "aaab");
    assert!(!server.log().contains(&one) && !server.log().contains(&all));

    // Browsers: a configured origin may send, another may not.
    let headers = "Origin: https://shop.example\r\nAccess-Control-Request-Method: POST\r\n";
    let answer = send(&server, "OPTIONS", "/v1/events", headers, b"").await;
    assert_eq!(answer.code, 204);
    assert!(answer.head.contains("access-control-allow-origin: https://shop.example"), "{answer:?}");
    let answer = post(&server, "/v1/events", &(bearer(&all) + "Origin: https://shop.example\r\n"), event(6, "")).await;
    assert!(answer.code == 200 && answer.head.contains("access-control-allow-origin: https://shop.example"), "{answer:?}");
    assert_eq!(post(&server, "/v1/events", &(bearer(&all) + "Origin: https://evil.example\r\n"), event(7, "")).await.code, 403);
    assert_eq!(send(&server, "OPTIONS", "/v1/events", "Origin: https://evil.example\r\n", b"").await.code, 403);

    session.rows("DROP INGEST TOKEN berlin").await;
    assert_eq!(session.failure("DROP INGEST TOKEN berlin").await.state, "42704");
    session.rows("DROP INGEST TOKEN IF EXISTS berlin").await;
    assert_eq!(post(&server, "/v1/events", &bearer(&one), event(8, "")).await.code, 401);
}

/// Clients that send until they are answered, while the server is killed: nothing is lost, nothing is there twice.
#[tokio::test(flavor = "multi_thread")]
async fn kills_between_requests_lose_and_double_nothing() {
    const CLIENTS: usize = 4;
    const EVENTS: usize = 25;
    let mut server = Server::start_with(Options::busy()).await;
    let session = server.connect().await;
    session.rows("CREATE TABLE e (id bigint NOT NULL, at timestamptz NOT NULL, WATERMARK FOR at AS at - INTERVAL '1 hour')").await;
    session
        .rows("CREATE MATERIALIZED VIEW v AS SELECT TUMBLE(at, INTERVAL '1 minute') AS w, count(*) AS n, sum(id) AS s FROM e GROUP BY w")
        .await;
    let kills = 3;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let port = server.http;
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let stop = std::sync::Arc::clone(&stop);
            tokio::spawn(async move {
                let mut sent = 0_usize;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let first = (sent * CLIENTS + client) * EVENTS;
                    let lines: String =
                        (first..first + EVENTS).map(|id| format!("{{\"id\":{id},\"at\":\"2024-05-01T10:00:00Z\"}}\n")).collect();
                    let headers = format!("Idempotency-Key: {client}-{sent}\r\n");
                    loop {
                        let Ok(socket) = TcpStream::connect(("127.0.0.1", port)).await else {
                            tokio::time::sleep(Duration::from_millis(5)).await;
                            continue;
                        };
                        let mut connection = Client { socket, rest: Vec::new() };
                        let head = format!("POST /v1/events/e HTTP/1.1\r\nHost: v\r\n{headers}Content-Length: {}\r\n\r\n", lines.len());
                        let written = connection.socket.write_all((head + &lines).as_bytes()).await;
                        match connection.answer().await.filter(|_| written.is_ok()) {
                            Some(Answer { code: 200, body, .. }) => {
                                assert_eq!(body["accepted"], EVENTS);
                                break;
                            }
                            Some(Answer { code: 409 | 429 | 503, .. }) | None => tokio::time::sleep(Duration::from_millis(5)).await,
                            Some(other) => panic!("{other:?}"),
                        }
                    }
                    sent += 1;
                }
                sent
            })
        })
        .collect();
    for _ in 0..kills {
        tokio::time::sleep(Duration::from_millis(400)).await;
        server.kill();
        server.restart().await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut sent = 0;
    for client in clients {
        sent += client.await.unwrap();
    }
    let session = server.connect().await;
    let count = session.value("SELECT concat(count(*), '/', count(DISTINCT id)) FROM e").await;
    assert_eq!(count, format!("{0}/{0}", sent * EVENTS), "{sent} requests");
    assert_eq!(session.value("SELECT sum(n) FROM v").await, (sent * EVENTS).to_string());
    assert_eq!(session.value("SELECT count(*) FROM verus.requests").await, sent.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_events_are_pruned_by_size() {
    let env = [("VERUS_LIMITS_INGEST_REJECTED_BYTES_MAX", "1000000")].map(|(key, value)| (key, value.to_owned())).to_vec();
    let server = Server::start_with(Options { template: true, env }).await;
    let session = server.connect().await;
    let padding = "x".repeat(1_000);
    let bad = |from: u32| {
        (from..from + 50).map(|id| event(id, &format!(",\"event_type\":\"\",\"pad\":\"{padding}\"")) + "\n").collect::<String>()
    };
    let mut sent = 0;
    let pruned = "SELECT coalesce(sum(value::bigint) > 0, false) FROM verus.metrics \
                  WHERE name = 'verus_limits_hit_total' AND labels::text LIKE '%rejected_bytes_max%'";
    // Beyond the limit the older half goes, beside the requests.
    while session.value(pruned).await != "t" {
        assert!(sent < 5_000, "nothing was pruned");
        assert_eq!(post(&server, "/v1/events", "", bad(sent)).await.code, 422);
        sent += 50;
    }
    assert!(sent >= 100, "{sent}");
    session.until("SELECT count(*) = 0 FROM verus.rejected_events WHERE event LIKE '%8000-000000000000%'").await;
    let newest = format!("SELECT count(*) FROM verus.rejected_events WHERE event LIKE '%8000-{:012}%'", sent - 1);
    assert_eq!(session.value(&newest).await, "1");
}
