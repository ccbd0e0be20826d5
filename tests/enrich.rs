//! What is filled in on the way in: devices, countries, sources; whose address counts; defaults that name columns.

use std::path::Path;

use crate::harness::{Options, Server};
use crate::ingest_http::{event, post};

/// A database in MaxMind's format, of IPv4 networks with their countries (and, for all of them, region `BE` and city `Berlin`).
fn geo_database(path: &Path, networks: &[([u8; 4], u8, &str)]) {
    fn text(text: &str) -> Vec<u8> {
        [&[2 << 5 | text.len() as u8][..], text.as_bytes()].concat()
    }
    fn number(kind: u8, number: u32) -> Vec<u8> {
        match kind {
            5 => [&[5 << 5 | 2][..], &(number as u16).to_be_bytes()].concat(),
            _ => [&[6 << 5 | 4][..], &number.to_be_bytes()].concat(),
        }
    }
    let map = |members: u8| vec![7 << 5 | members];
    let list = |items: u8| vec![items, 4];
    let (mut data, mut nodes) = (Vec::new(), vec![[Branch::None; 2]]);
    for (address, bits, country) in networks {
        let place = data.len();
        for part in [map(3), text("country"), map(1), text("iso_code"), text(country)] {
            data.extend(part);
        }
        for part in [text("subdivisions"), list(1), map(1), text("iso_code"), text("BE")] {
            data.extend(part);
        }
        for part in [text("city"), map(1), text("names"), map(1), text("en"), text("Berlin")] {
            data.extend(part);
        }
        let address = u32::from_be_bytes(*address);
        let mut node = 0;
        for bit in 0..*bits {
            let side = (address >> (31 - bit) & 1) as usize;
            if bit + 1 == *bits {
                nodes[node][side] = Branch::Data(place);
            } else if let Branch::Node(next) = nodes[node][side] {
                node = next;
            } else {
                nodes.push([Branch::None; 2]);
                let next = nodes.len() - 1;
                nodes[node][side] = Branch::Node(next);
                node = next;
            }
        }
    }
    let count = nodes.len();
    let mut file = Vec::new();
    for branch in nodes.iter().flatten() {
        let record = match branch {
            Branch::None => count,
            Branch::Node(node) => *node,
            Branch::Data(place) => count + 16 + place,
        };
        file.extend(&(record as u32).to_be_bytes()[1..]);
    }
    file.extend([0; 16]);
    file.extend(data);
    file.extend(b"\xab\xcd\xefMaxMind.com");
    let metadata = [
        map(9),
        [text("node_count"), number(6, count as u32)].concat(),
        [text("record_size"), number(5, 24)].concat(),
        [text("ip_version"), number(5, 4)].concat(),
        [text("database_type"), text("Test-City")].concat(),
        [text("languages"), list(1), text("en")].concat(),
        [text("binary_format_major_version"), number(5, 2)].concat(),
        [text("binary_format_minor_version"), number(5, 0)].concat(),
        [text("build_epoch"), vec![8, 2, 0, 0, 0, 0, 0x65, 0, 0, 0]].concat(),
        [text("description"), map(0)].concat(),
    ];
    metadata.into_iter().for_each(|part| file.extend(part));
    std::fs::write(path, file).unwrap();
}

#[derive(Clone, Copy)]
enum Branch {
    None,
    Node(usize),
    Data(usize),
}

const PHONE: &str = "User-Agent: Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) Mobile/15E148\r\n";

async fn start(dir: &Path, env: &[(&'static str, &str)]) -> Server {
    let path = dir.join("geo.mmdb");
    geo_database(&path, &[([198, 51, 100, 0], 24, "DE"), ([203, 0, 113, 0], 24, "FR")]);
    let mut env: Vec<_> = env.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
    env.push(("VERUS_GEO_DATABASE", path.to_str().unwrap().to_owned()));
    Server::start_with(Options { template: true, env }).await
}

#[tokio::test]
async fn events_are_enriched() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = start(dir.path(), &[("VERUS_TRUSTED_PROXIES", "127.0.0.0/8, ::1")]).await;
    let session = server.connect().await;
    let phone = format!("{PHONE}X-Forwarded-For: 10.9.9.9, 198.51.100.77\r\n");
    let cases = [
        // A browser behind a proxy.
        (phone.as_str(), ",\"referrer\":\"https://www.google.com/\"", "mobile|DE|google|organic|NULL"),
        // What the event gives stays, NULL too.
        (&phone, ",\"device_type\":\"kiosk\",\"country\":null,\"utm_source\":\"x\"", "kiosk|NULL|x|NULL|NULL"),
        (
            &phone,
            ",\"page\":\"/shoes\",\"url\":\"https://shop.example/shoes?utm_source=news&utm_medium=email&utm_campaign=may%20day\"",
            "mobile|DE|news|email|may day",
        ),
        // A shop's server is not who bought.
        ("User-Agent: python-requests/2.31\r\nX-Forwarded-For: 198.51.100.77\r\n", "", "NULL|NULL|NULL|NULL|NULL"),
        (
            "User-Agent: python-requests/2.31\r\n",
            ",\"context\":{\"ip\":\"203.0.113.9\",\"userAgent\":\"Mozilla/5.0 (Windows NT 10.0; Win64; x64)\"}",
            "desktop|FR|NULL|NULL|NULL",
        ),
        (&phone, ",\"context\":{\"ip\":\"no address\"}", "mobile|NULL|NULL|NULL|NULL"),
    ];
    let row = |id: usize| {
        format!(
            "SELECT concat_ws('|', coalesce(device_type, 'NULL'), coalesce(country, 'NULL'), coalesce(utm_source, 'NULL'), \
             coalesce(utm_medium, 'NULL'), coalesce(utm_campaign, 'NULL')) FROM events WHERE event_id = '00000000-0000-4000-8000-{id:012}'"
        )
    };
    for (id, (headers, more, expected)) in cases.iter().enumerate() {
        let answer = post(&server, "/v1/events", headers, event(id as u32, more)).await;
        assert_eq!(answer.code, 200, "{answer:?}");
        assert_eq!(session.value(&row(id)).await, *expected, "{headers}{more}");
    }
    // Events of one request that differ in what they give.
    let lines = [event(20, ",\"device_type\":\"tv\""), event(21, ""), event(22, ",\"device_type\":null")].join("\n");
    post(&server, "/v1/events", &phone, lines).await;
    assert_eq!(session.value("SELECT string_agg(coalesce(device_type, '-'), ' ' ORDER BY event_id) FROM events WHERE event_id >= '00000000-0000-4000-8000-000000000020'").await, "tv mobile -");
    // SQL's ways in.
    session
        .rows(
            "INSERT INTO events (event_id, event_type, event_time, session_id, store_id, page, referrer, properties) VALUES \
             ('00000000-0000-4000-8000-000000000030', 'page_view', now(), 's', 'b', '/', 'https://t.co/x', \
              '{\"context\": {\"userAgent\": \"Mozilla/5.0 (iPad; CPU OS 17)\", \"ip\": \"198.51.100.1\"}}')",
        )
        .await;
    assert_eq!(session.value(&row(30)).await, "tablet|DE|twitter|social|NULL");
    let copy = "COPY events (event_id, event_type, event_time, session_id, store_id, referrer) FROM STDIN (FORMAT csv)";
    session.copy(copy, "00000000-0000-4000-8000-000000000031,page_view,2024-05-01,s,c,https://blog.example/\n").await.unwrap();
    assert_eq!(session.value(&row(31)).await, "NULL|NULL|blog.example|referral|NULL");
    assert_eq!(
        session
            .rows("SELECT geo_country('198.51.100.3'), geo_region('198.51.100.3'), geo_city('198.51.100.3'), geo_country('8.8.8.8')")
            .await,
        [["DE", "BE", "Berlin", "NULL"]]
    );
    assert_eq!(
        session
            .failure("CREATE MATERIALIZED VIEW v AS SELECT geo_country(page) AS g, count(*) AS n FROM events GROUP BY 1")
            .await
            .state
            .len(),
        5
    );
    // A rule that the shop changes, in force at once and after a restart.
    session.rows("ALTER TABLE events ALTER COLUMN utm_source SET DEFAULT lower(store_id), ALTER utm_medium DROP DEFAULT").await;
    server.kill();
    server.restart().await;
    let session = server.connect().await;
    post(&server, "/v1/events", &phone, event(40, ",\"referrer\":\"https://www.google.com/\"")).await;
    assert_eq!(session.value(&row(40)).await, "mobile|DE|a|NULL|NULL");
}

#[tokio::test]
async fn addresses_are_kept_as_configured() {
    let dir = tempfile::tempdir().unwrap();
    let table = "CREATE TABLE hits (at timestamptz NOT NULL DEFAULT now(), ip text DEFAULT client_ip, agent text DEFAULT client_user_agent, \
                 WATERMARK FOR at AS at)";
    for (way, trusted, expected) in [
        ("truncate", "127.0.0.1", "198.51.100.0|curl/8"),
        ("keep", "127.0.0.1", "198.51.100.77|curl/8"),
        ("drop", "127.0.0.1", "-|curl/8"),
        // Nobody's word is taken for it.
        ("keep", "", "127.0.0.1|curl/8"),
    ] {
        let server = start(dir.path(), &[("VERUS_TRUSTED_PROXIES", trusted), ("VERUS_CLIENT_ADDRESSES", way)]).await;
        let session = server.connect().await;
        session.rows(table).await;
        post(&server, "/v1/events/hits", "User-Agent: curl/8\r\nX-Forwarded-For: 198.51.100.77\r\n", "{}").await;
        assert_eq!(session.value("SELECT concat_ws('|', coalesce(ip, '-'), agent) FROM hits").await, expected, "{way} {trusted}");
    }
}

#[tokio::test]
async fn defaults_that_name_columns() {
    let server = Server::start().await;
    let session = server.connect().await;
    session.rows("CREATE TABLE t (id integer, a text DEFAULT b || '!', b text DEFAULT 'x', c text DEFAULT coalesce(a, 'none'), d integer DEFAULT id + 1)").await;
    session.rows("INSERT INTO t (id) VALUES (1)").await;
    session.rows("INSERT INTO t (id, b) SELECT 2, 'y'").await;
    session.rows("INSERT INTO t (id, a, d) VALUES (3, 'z', NULL)").await;
    session.copy("COPY t (id, a, d) FROM STDIN (FORMAT csv, DEFAULT 'dft')", "4,dft,dft\n5,w,7\n").await.unwrap();
    let rows = session.rows("SELECT * FROM t ORDER BY id").await;
    let expected = [
        ["1", "x!", "x", "none", "2"],
        ["2", "y!", "y", "none", "3"],
        ["3", "z", "x", "z", "NULL"],
        ["4", "x!", "x", "none", "5"],
        ["5", "w", "x", "w", "7"],
    ];
    assert_eq!(rows, expected);
    for (statement, state) in [
        ("CREATE TABLE u (a text DEFAULT nothing)", "42703"),
        ("CREATE TABLE u (a integer DEFAULT b, b text[])", "42846"),
        ("INSERT INTO t (id, a) VALUES (1, DEFAULT)", "0A000"),
        ("ALTER TABLE t ALTER COLUMN a SET DEFAULT nothing", "42703"),
        ("ALTER TABLE t ALTER COLUMN nothing SET DEFAULT 1", "42703"),
        ("ALTER TABLE t ALTER COLUMN a SET NOT NULL", "0A000"),
    ] {
        let failure = session.failure(statement).await;
        assert_eq!(failure.state, state, "{statement}: {failure}");
    }
    // Rows that are there do not know what it is computed from.
    session.rows("ALTER TABLE t ADD COLUMN e text DEFAULT a || b, ALTER COLUMN b SET DEFAULT 'q'").await;
    session.rows("INSERT INTO t (id, a) VALUES (6, 'p')").await;
    assert_eq!(session.rows("SELECT id, e FROM t WHERE id > 4 ORDER BY id").await, [["5", "NULL"], ["6", "pq"]]);
    let shown = session.value("SELECT column_default FROM information_schema.columns WHERE table_name = 't' AND column_name = 'a'").await;
    assert_eq!(shown, "b || '!'");
}
