//! `GET /views/{name}/changes`: server-sent events over a socket, read until a progress has the LSN of the last commit.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Options, SOON, Server, Session};

/// A response whose body is read event by event.
struct Stream {
    socket: TcpStream,
    head: String,
    /// Bytes of the body that are no event yet.
    body: String,
    raw: Vec<u8>,
    /// Of the last event that had one.
    id: String,
}

impl Stream {
    async fn get(server: &Server, path: &str, headers: &str) -> Stream {
        let mut socket = TcpStream::connect(("127.0.0.1", server.http)).await.unwrap();
        socket.write_all(format!("GET {path} HTTP/1.1\r\nHost: verus\r\n{headers}\r\n").as_bytes()).await.unwrap();
        let mut raw = Vec::new();
        let end = loop {
            if let Some(at) = raw.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            assert!(socket.read_buf(&mut raw).await.unwrap() > 0, "{}", String::from_utf8_lossy(&raw));
        };
        let rest = raw.split_off(end);
        Stream { socket, head: String::from_utf8(raw).unwrap(), body: String::new(), raw: rest, id: String::new() }
    }

    fn status(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    /// The next chunk of the transfer coding; false at the end.
    async fn chunk(&mut self) -> bool {
        loop {
            if let Some(line) = self.raw.windows(2).position(|window| window == b"\r\n") {
                let size = usize::from_str_radix(std::str::from_utf8(&self.raw[..line]).unwrap().trim(), 16).unwrap();
                if self.raw.len() >= line + 2 + size + 2 {
                    let chunk: Vec<u8> = self.raw.drain(..line + 2 + size + 2).skip(line + 2).take(size).collect();
                    self.body.push_str(std::str::from_utf8(&chunk).unwrap());
                    return size > 0;
                }
            }
            if self.socket.read_buf(&mut self.raw).await.unwrap_or(0) == 0 {
                return false;
            }
        }
    }

    /// Kind and data of the next event; none at the end.
    async fn event(&mut self) -> Option<(String, Value)> {
        loop {
            while let Some(end) = self.body.find("\n\n") {
                let event: String = self.body.drain(..end + 2).collect();
                let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim_start().to_owned());
                if let Some(id) = field("id:") {
                    self.id = id;
                }
                if let (Some(kind), Some(data)) = (field("event:"), field("data:")) {
                    return Some((kind, serde_json::from_str(&data).unwrap_or_else(|error| panic!("{error}: {data}"))));
                }
            }
            if !self.chunk().await {
                return None;
            }
        }
    }

    /// The events up to a progress of at least `lsn`.
    async fn until(&mut self, lsn: u64) -> Vec<(String, Value)> {
        let mut events = Vec::new();
        loop {
            let (kind, data) = self.event().await.expect("the stream goes on");
            if kind != "progress" {
                events.push((kind, data));
            } else if data["lsn"].as_u64().unwrap() >= lsn {
                assert_eq!(self.id, data["lsn"].to_string());
                return events;
            }
        }
    }
}

async fn newest(session: &Session) -> u64 {
    session.value("SELECT max(snapshot_lsn) FROM verus.views").await.parse().unwrap()
}

const TABLE: &str = "CREATE TABLE e (id bigint NOT NULL, at timestamptz NOT NULL, shop text, price numeric(12,2), note jsonb, \
                     WATERMARK FOR at AS at - INTERVAL '1 hour') WITH (partition_by = 'shop')";

async fn prepared(options: Options) -> (Server, Session) {
    let server = Server::start_with(options).await;
    let session = server.connect().await;
    session.rows(TABLE).await;
    session
        .rows(
            "CREATE MATERIALIZED VIEW v AS SELECT shop, TUMBLE(at, INTERVAL '1 minute') AS w, count(*) AS n, sum(price) AS total, \
             max(price) > 5 AS dear, array_agg(id ORDER BY id) AS ids, avg(id::double precision) AS mean FROM e GROUP BY shop, w",
        )
        .await;
    (server, session)
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_events_that_can_be_resumed() {
    let (mut server, session) = prepared(Options::busy()).await;
    session
        .rows("INSERT INTO e VALUES (1, '2024-05-01 10:00:30+00', 's1', 5.50, '{}'), (2, '2024-05-01 10:00:31+00', NULL, 1, NULL)")
        .await;
    let mut stream = Stream::get(&server, "/views/v/changes", "").await;
    assert_eq!(stream.status(), "200", "{}", stream.head);
    assert!(stream.head.contains("content-type: text/event-stream"), "{}", stream.head);
    let mut events = stream.until(newest(&session).await).await;
    events.sort_by_key(|(_, row)| row["shop"].to_string());
    let row = json!({"shop": "s1", "w": "2024-05-01T10:00:00+00:00", "n": 1, "total": 5.50, "dear": true, "ids": [1], "mean": 1});
    assert_eq!(events[0], ("snapshot".to_owned(), row));
    assert_eq!((events.len(), &events[1].1["shop"], &events[1].1["dear"]), (2, &Value::Null, &json!(false)));

    session.rows("INSERT INTO e VALUES (3, '2024-05-01 10:00:32+00', 's1', 1.25, NULL)").await;
    let events = stream.until(newest(&session).await).await;
    assert_eq!(events.len(), 1);
    assert_eq!((events[0].0.as_str(), &events[0].1["total"], &events[0].1["ids"]), ("update", &json!(6.75), &json!([1, 3])));
    let id = stream.id.clone();
    drop(stream);

    session.rows("INSERT INTO e VALUES (4, '2024-05-01 10:05:00+00', 's2', 1, NULL), (5, '2024-05-01 10:05:00+00', 's3', 1, NULL)").await;
    server.kill();
    server.restart().await;
    let session = server.connect().await;
    let lsn = newest(&session).await;
    let shops = |events: &[(String, Value)]| {
        events.iter().map(|(kind, row)| (row["shop"].as_str().unwrap_or_default().to_owned(), kind.clone())).collect::<BTreeMap<_, _>>()
    };
    let mut resumed = Stream::get(&server, "/views/v/changes?snapshot=false", &format!("Last-Event-ID: {id}\r\n")).await;
    let found = shops(&resumed.until(lsn).await);
    assert!(found.contains_key("s2") && found.contains_key("s3") && found.values().all(|kind| kind == "update"), "{found:?}");
    let mut filtered = Stream::get(&server, &format!("/views/v/changes?from={id}&shop=s%32&up_to={lsn}"), "").await;
    assert_eq!(shops(&filtered.until(lsn).await).keys().collect::<Vec<_>>(), ["s2"]);
    assert_eq!(filtered.event().await, None, "it ends at up_to");

    session.rows("TRUNCATE e").await;
    assert!(shops(&resumed.until(newest(&session).await).await).values().all(|kind| kind == "delete"));
    session.rows("DROP MATERIALIZED VIEW v").await;
    let mut last = ("".to_owned(), Value::Null);
    while let Some(event) = resumed.event().await {
        last = event;
    }
    assert_eq!((last.0.as_str(), &last.1["code"]), ("error", &json!("42P01")));
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_requests_are_refused_with_a_reason() {
    let options = Options { env: vec![("VERUS_LIMITS_WIRE_HTTP_SUBSCRIBERS_MAX", "1".to_owned())], ..Options::default() };
    let (mut server, session) = prepared(options).await;
    for (path, headers, status, code) in [
        ("/views/nowhere/changes", "", "404", "42P01"),
        ("/views/e/changes", "", "400", "42809"),
        ("/views/v/changes?from=x", "", "400", "22023"),
        ("/views/v/changes?from=999999999", "", "400", "22023"),
        ("/views/v/changes?from=1", "", "409", "55000"),
        ("/views/v/changes", "Last-Event-ID: 1\r\n", "409", "55000"),
        ("/views/v/changes?nothing=1", "", "400", "42703"),
        ("/views/v/changes?n=x", "", "400", "22P02"),
        ("/views/v/changes?shop=%zz", "", "400", "22023"),
        ("/views/v/changes?shop=%27%20OR%20true--", "", "200", ""),
    ] {
        let mut stream = Stream::get(&server, path, &format!("{headers}Connection: close\r\n")).await;
        assert_eq!(stream.status(), status, "{path} {headers}: {}", stream.head);
        if !code.is_empty() {
            stream.socket.read_to_end(&mut stream.raw).await.unwrap();
            let body: Value = serde_json::from_slice(&stream.raw).unwrap();
            assert_eq!(body["code"], code, "{path}: {body}");
        }
        drop(stream);
        crate::subscribe::until_metric(&server, "verus_subscribers", |count| count == 0).await;
    }
    let lsn = newest(&session).await;
    let mut only = Stream::get(&server, "/views/v/changes", "").await;
    only.until(lsn).await;
    assert_eq!(Stream::get(&server, "/views/v/changes", "").await.status(), "503");
    assert!(server.terminate(SOON).await.success());
    while only.event().await.is_some() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_password_only_verus_gets_in() {
    let server = Server::start_with(Options { env: vec![("VERUS_PASSWORD", "open sesame".to_owned())], ..Options::default() }).await;
    for (headers, status) in [
        ("", "401"),
        ("Authorization: Basic dmVydXM6d3Jvbmc=\r\n", "401"),
        ("Authorization: Bearer dmVydXM6b3BlbiBzZXNhbWU=\r\n", "401"),
        ("Authorization: Basic dmVydXM6b3BlbiBzZXNhbWU=\r\n", "404"),
    ] {
        let stream = Stream::get(&server, "/views/v/changes", headers).await;
        assert_eq!(stream.status(), status, "{headers}: {}", stream.head);
        assert_eq!(stream.head.to_ascii_lowercase().contains("www-authenticate: basic"), status == "401");
    }
}
