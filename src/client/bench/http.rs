//! Events accepted per second over HTTP, with views maintained: bodies of a thousand events, and single events over many connections.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::super::event::Form;
use super::super::wire::Connection;
use super::super::{Error, Result};
use super::chunk::{Plan, Pool, Traffic};
use super::ingest::{Acknowledged, check};
use super::report::Report;
use super::{HttpArgs, Target, expect, schema};

/// 2026-01-01 00:00:00 UTC: the same events whenever it runs.
const START_US: i64 = 1_767_225_600_000_000;

/// Bytes of an answer's head and body.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

pub async fn run(target: &Target, control: &Connection, args: HttpArgs) -> Result<Vec<Report>> {
    let single = HttpArgs { rows: args.single_rows, body: 1, connections: args.single_connections, ..args };
    Ok(vec![measure(target, control, args).await?, measure(target, control, single).await?])
}

async fn measure(target: &Target, control: &Connection, args: HttpArgs) -> Result<Report> {
    let HttpArgs { rows, body, connections, views, stores, dedup, .. } = args;
    match dedup {
        true => schema::create_with_dedup(control, views).await?,
        false => schema::create(control, views).await?,
    }
    let keys = if dedup { ", dedup_key" } else { "" };
    let mut report =
        Report::new("http", &format!("{views} views, {stores} stores, bodies of {body} events, {connections} connections{keys}"));
    let traffic = Traffic { stores, ..Traffic::default() };
    let form = Form::Json;
    let pools = Pool::make(Plan { seed: target.seed, start: START_US, form, total: rows, chunk: body, connections, marker: None, traffic });
    let requests = rows.div_ceil(body).max(connections);
    let mut clients = Vec::new();
    for _ in 0..connections {
        clients.push(Http::open(target, args.http_port).await?);
    }
    let begin = Instant::now();
    let senders = clients.into_iter().zip(pools).enumerate().map(|(index, (mut client, mut pool))| {
        let own = requests / connections + u64::from((index as u64) < requests % connections);
        target.spawner.io(async move {
            let mut sum = Acknowledged::default();
            for _ in 0..own {
                let (chunk, later) = pool.next_chunk();
                let data = chunk.data(later);
                sum.times.push(client.post(&data, chunk.events()).await?);
                sum.add(chunk);
            }
            Ok::<_, Error>(sum)
        })
    });
    let mut sum = Acknowledged::default();
    for sender in senders.collect::<Vec<_>>() {
        let own = sender.await.map_err(|error| Error::Wrong(format!("a sender panicked: {error}")))??;
        sum = sum.and(own);
    }
    let seconds = begin.elapsed().as_secs_f64();
    report.number("events", sum.events as f64, "acknowledged");
    report.number("events_per_second", sum.events as f64 / seconds, "");
    report.times("acknowledgement", &mut sum.times);
    check(control, &sum).await?;
    report.checked("count, and purchases and revenue by view");
    Ok(report)
}

/// A keep-alive connection.
struct Http {
    socket: TcpStream,
    head: String,
    answer: Vec<u8>,
}

impl Http {
    async fn open(target: &Target, port: u16) -> Result<Http> {
        let socket = TcpStream::connect((target.address.host.as_str(), port)).await?;
        socket.set_nodelay(true)?;
        let authorization = match &target.token {
            Some(token) => format!("Authorization: Bearer {token}\r\n"),
            None => String::new(),
        };
        let head = format!(
            "POST /v1/events/bench_events HTTP/1.1\r\nHost: {}\r\nContent-Type: application/x-ndjson\r\n{authorization}Content-Length: ",
            target.address.host
        );
        Ok(Http { socket, head, answer: Vec::new() })
    }

    /// Sends a body; the time until it is answered.
    async fn post(&mut self, body: &[u8], events: i64) -> Result<Duration> {
        let begin = Instant::now();
        let mut request = format!("{}{}\r\n\r\n", self.head, body.len()).into_bytes();
        request.extend_from_slice(body);
        self.socket.write_all(&request).await?;
        self.answer.clear();
        let text = loop {
            if self.socket.read_buf(&mut self.answer).await? == 0 || self.answer.len() > ANSWER_BYTES_MAX {
                return Err(Error::Wrong("the server closed the connection".to_owned()));
            }
            let text = std::str::from_utf8(&self.answer).map_err(|error| Error::Wrong(error.to_string()))?;
            // The body is one line.
            if text.contains("\r\n\r\n") && text.ends_with("}\n") {
                break text;
            }
        };
        let elapsed = begin.elapsed();
        if !text.starts_with("HTTP/1.1 200 ") {
            return Err(Error::Wrong(text.lines().last().unwrap_or(text).to_owned()));
        }
        let accepted = text.rsplit_once("\"accepted\":").and_then(|(_, rest)| rest.split(',').next()?.parse().ok());
        expect("events of a request", events, accepted.unwrap_or(-1))?;
        Ok(elapsed)
    }
}
