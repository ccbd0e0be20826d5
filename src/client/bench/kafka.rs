//! Events read from Kafka per second, with views maintained: from a broker in the memory of this process, whose topic is filled beforehand.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::broker::Cluster;
use super::super::event::Form;
use super::super::wire::Connection;
use super::super::{Error, Result};
use super::chunk::{Plan, Pool, Traffic};
use super::ingest::{Acknowledged, check};
use super::report::Report;
use super::{KafkaArgs, Target, expect, schema};
use crate::kafka::codec::Codec;

/// 2026-01-01 00:00:00 UTC: the same events whenever it runs.
const START_US: i64 = 1_767_225_600_000_000;

const TOPIC: &str = "bench-events";
const SOURCE: &str = "bench_source";

/// Time between two looks at how far the source has come.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A source that does not come on for so long has failed.
const STALLED_AFTER: Duration = Duration::from_secs(60);

pub async fn run(target: &Target, control: &Connection, args: KafkaArgs) -> Result<Report> {
    let drop = format!("DROP SOURCE IF EXISTS {SOURCE}");
    control.client.batch_execute(&drop).await?;
    let outcome = measure(target, control, args).await;
    // Also after a failure, whose error is the one to tell.
    let dropped = control.client.batch_execute(&drop).await;
    let report = outcome?;
    dropped?;
    Ok(report)
}

async fn measure(target: &Target, control: &Connection, args: KafkaArgs) -> Result<Report> {
    let KafkaArgs { partitions, batch, views, stores, zstd, dedup, .. } = args;
    match dedup {
        true => schema::create_with_dedup(control, views).await?,
        false => schema::create(control, views).await?,
    }
    let (codec, named) = if zstd { (Codec::Zstd, "zstd") } else { (Codec::None, "no compression") };
    let keys = if dedup { ", dedup_key" } else { "" };
    let options = format!("{views} views, {stores} stores, {partitions} partitions, batches of {batch} messages, {named}{keys}");
    let mut report = Report::new("kafka", &options);
    let (cluster, sum) = fill(target.seed, args, codec)?;
    let broker = cluster.serve(0, &target.spawner).await?;
    let begin = Instant::now();
    let statement =
        format!("CREATE SOURCE {SOURCE} FROM KAFKA (brokers = '{}', topic = '{TOPIC}', format = 'json') INTO bench_events", broker.address);
    control.client.batch_execute(&statement).await?;
    wait(control, sum.events).await?;
    let seconds = begin.elapsed().as_secs_f64();
    report.number("events", sum.events as f64, "committed");
    report.number("events_per_second", sum.events as f64 / seconds, "");
    let memory = |name: &str| format!("SELECT coalesce(max(value), 0)::bigint FROM verus.metrics WHERE name = 'verus_{name}_bytes'");
    for (key, name) in [("resident_memory", "resident_memory"), ("resident_memory_peak", "resident_memory_peak")] {
        report.number(key, control.number(&memory(name)).await? as f64 / 1_048_576.0, "MiB of the server");
    }
    check(control, &sum).await?;
    let refused = control.number(&format!("SELECT (rejected + lost)::bigint FROM verus.sources WHERE source_name = '{SOURCE}'")).await?;
    expect("messages that were refused", 0, refused)?;
    report.checked("count, and purchases and revenue by view");
    Ok(report)
}

/// A topic with all events, and what they are.
fn fill(seed: u64, args: KafkaArgs, codec: Codec) -> Result<(Arc<Cluster>, Acknowledged)> {
    let KafkaArgs { rows, partitions, batch, stores, .. } = args;
    let traffic = Traffic { stores, ..Traffic::default() };
    let plan = Plan { seed, start: START_US, form: Form::Json, total: rows, chunk: batch, connections: partitions, marker: None, traffic };
    let batches = rows.div_ceil(batch).max(partitions);
    let cluster = Cluster::new();
    cluster.create(TOPIC, usize::try_from(partitions).unwrap_or(1));
    let mut sum = Acknowledged::default();
    for (partition, mut pool) in Pool::make(plan).into_iter().enumerate() {
        let own = batches / partitions + u64::from((partition as u64) < batches % partitions);
        for _ in 0..own {
            let (chunk, later) = pool.next_chunk();
            let data = chunk.data(later);
            let lines: Vec<Option<&[u8]>> = data.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(Some).collect();
            cluster.append(TOPIC, partition, codec, &lines)?;
            sum.add(chunk);
        }
    }
    Ok((cluster, sum))
}

/// Waits until the source has committed so many events.
async fn wait(control: &Connection, events: i64) -> Result<()> {
    let query = format!(
        "SELECT coalesce(sum(accepted + late + duplicates + rejected), 0)::bigint FROM verus.sources WHERE source_name = '{SOURCE}'"
    );
    let (mut last, mut moved) = (0, Instant::now());
    loop {
        let found = control.number(&query).await?;
        if found >= events {
            return Ok(());
        }
        if found > last {
            (last, moved) = (found, Instant::now());
        }
        if moved.elapsed() > STALLED_AFTER {
            return Err(Error::Wrong(format!("the source stands at {found} of {events} events: see verus.sources")));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
