//! Segment's protocol: bodies that its libraries have sent, answers, write keys, rules that change. With `VERUS_SEGMENT_PYTHON` (a Python that has
//! segment-analytics-python) and `VERUS_SEGMENT_NODE` (a directory with @segment/analytics-node in its node_modules) the libraries themselves
//! send too.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::harness::{Options, Server, Session};
use crate::ingest_http::post;

const PYTHON: &str = include_str!("segment/python.json");
const NODE: &str = include_str!("segment/node.json");

/// `key:` as Basic authentication.
fn basic(key: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in format!("{key}:").as_bytes().chunks(3) {
        let bits = (0..3).fold(0, |bits, index| bits << 8 | u32::from(*chunk.get(index).unwrap_or(&0)));
        (0..4)
            .for_each(|digit| text.push(if digit <= chunk.len() { DIGITS[(bits >> (18 - 6 * digit)) as usize & 63] as char } else { '=' }));
    }
    format!("Authorization: Basic {text}\r\nContent-Type: application/json\r\n")
}

async fn shop(env: &[(&'static str, &str)]) -> (Server, Session) {
    let env = env.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
    let server = Server::start_with(Options { template: true, env }).await;
    let session = server.connect().await;
    (server, session)
}

const ROWS: &str =
    "SELECT event_type, user_id, store_id, device_type, page, product_id, quantity, revenue FROM events ORDER BY event_time, event_type";

/// What the scripts in `tests/segment/` send.
async fn check(session: &Session) {
    let kinds = "SELECT string_agg(concat(event_type, ' ', n), ', ' ORDER BY event_type) FROM (SELECT event_type, count(*) AS n FROM events GROUP BY 1) AS k";
    assert_eq!(
        session.value(kinds).await,
        "add_to_cart 1, alias 1, checkout_start 1, group 1, identify 1, newsletter_signed_up 1, page_view 2, product_view 1, purchase 2, \
         purchase_item 3, screen_view 1"
    );
    // Orders are counted once, and so is their revenue.
    assert_eq!(session.rows("SELECT sum(order_count), sum(total_revenue) FROM mv_revenue_by_minute").await, [["2", "74.70"]]);
    assert_eq!(session.value("SELECT sum(revenue) FROM events").await, "74.70");
    let orders = "SELECT order_id, revenue, quantity, device_type, utm_source, session_id FROM events WHERE event_type = 'purchase' ORDER BY order_id";
    assert_eq!(
        session.rows(orders).await,
        [["o-1", "64.70", "3", "mobile", "google", "u-1"], ["o-2", "10.00", "1", "desktop", "news", "u-2"]]
    );
    let items = "SELECT order_id, product_id, product_category, quantity, revenue, properties->>'price', device_type FROM events \
                 WHERE event_type = 'purchase_item' ORDER BY order_id, product_id";
    let expected = [
        ["o-1", "p1", "shoes", "2", "NULL", "19.9", "mobile"],
        ["o-1", "s2", "socks", "1", "NULL", "24.9", "mobile"],
        ["o-2", "p9", "NULL", "1", "NULL", "10", "desktop"],
    ];
    assert_eq!(session.rows(items).await, expected);
    let pages =
        "SELECT page, utm_source, utm_medium, session_id FROM events WHERE event_type IN ('page_view', 'screen_view') ORDER BY page";
    let expected = [["/shoes", "news", "(none)", "u-1"], ["/socks", "news", "email", "anon-2"], ["Cart", "news", "email", "u-2"]];
    assert_eq!(session.rows(pages).await, expected);
    let identify = "SELECT properties->>'plan', properties->'context'->>'ip', properties->'context'->>'library' FROM events WHERE event_type = 'identify'";
    assert_eq!(session.rows(identify).await, [["gold", "198.51.100.0", "NULL"]]);
    assert_eq!(
        session.value("SELECT properties->>'event' FROM events WHERE event_type = 'newsletter_signed_up'").await,
        "Newsletter Signed Up"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_libraries_send_becomes_events() {
    let (mut server, session) = shop(&[]).await;
    for _ in 0..2 {
        // Sent again, nothing comes twice.
        let answer = post(&server, "/v1/batch", &basic("any"), PYTHON).await;
        assert_eq!((answer.code, &answer.body), (200, &json!({"success": true})), "{answer:?}");
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(NODE.as_bytes()).unwrap();
        let answer = post(&server, "/v1/batch", &(basic("any") + "Content-Encoding: gzip\r\n"), gzip.finish().unwrap()).await;
        assert_eq!((answer.code, &answer.body), (200, &json!({"success": true})), "{answer:?}");
        check(&session).await;
    }
    server.kill();
    server.restart().await;
    check(&server.connect().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn single_calls_answers_and_rules() {
    let (server, session) = shop(&[]).await;
    let message =
        |id: &str, more: &str| format!("{{\"messageId\":\"{id}\",\"userId\":\"u\",\"timestamp\":\"2024-05-01T10:00:00Z\"{more}}}");
    for (index, (call, more)) in [
        ("track", ",\"event\":\"Product Viewed\",\"properties\":{\"product_id\":\"p\"}"),
        ("t", ",\"type\":\"track\",\"event\":\"Wish List Shared\""),
        ("page", ",\"properties\":{\"path\":\"/a\"}"),
        ("p", ""),
        ("screen", ",\"name\":\"Home\""),
        ("identify", ",\"traits\":{\"plan\":\"x\"}"),
        ("group", ",\"groupId\":\"g\""),
        ("alias", ",\"previousId\":\"a\""),
    ]
    .into_iter()
    .enumerate()
    {
        let answer = post(&server, &format!("/v1/{call}"), &basic("k"), message(&index.to_string(), more)).await;
        assert_eq!((answer.code, &answer.body["success"]), (200, &json!(true)), "{call} {answer:?}");
    }
    let kinds = session.value("SELECT string_agg(event_type, ' ' ORDER BY event_type) FROM events").await;
    assert_eq!(kinds, "alias group identify page_view page_view product_view screen_view wish_list_shared");
    // What is no event is refused alone, and kept.
    let batch =
        format!("{{\"batch\":[{},7,{}]}}", message("20", ",\"event\":\"A\",\"type\":\"track\""), message("21", ",\"type\":\"spell\""));
    let answer = post(&server, "/v1/batch", &basic("k"), batch).await;
    assert_eq!(
        (answer.code, &answer.body["success"], answer.body["refused"].as_array().unwrap().len()),
        (200, &json!(true), 2),
        "{answer:?}"
    );
    assert_eq!(
        session.value("SELECT string_agg(concat(source, ' ', sqlstate), ', ' ORDER BY position) FROM verus.rejected_events").await,
        "segment 22023, segment 23502"
    );
    for (path, body, code) in [
        ("/v1/track", "{\"event\":", 400),
        ("/v1/batch", "{}", 400),
        ("/v1/batch", "{\"batch\":[7]}", 400),
        ("/v1/nothing", "{}", 404),
        ("/v1/track", "\u{1}", 400),
    ] {
        let answer = post(&server, path, &basic("k"), body).await;
        assert_eq!(answer.code, code, "{path} {body} {answer:?}");
    }
    // Rules are read again when they change.
    session.rows("UPDATE segment_events SET event_type = 'look' WHERE event = 'Product Viewed'").await;
    session.rows("INSERT INTO segment_events VALUES ('track', 'Wish List Shared', 'share', NULL)").await;
    session.rows("UPDATE segment_columns SET paths = '{properties.shop,=main}' WHERE column_name = 'store_id'").await;
    post(&server, "/v1/track", &basic("k"), message("30", ",\"event\":\"Product Viewed\",\"properties\":{\"shop\":\"ulm\"}")).await;
    post(&server, "/v1/track", &basic("k"), message("31", ",\"event\":\"Wish List Shared\"")).await;
    let found = session.rows("SELECT event_type, store_id FROM events WHERE event_type IN ('look', 'share') ORDER BY 1").await;
    assert_eq!(found, [["look", "ulm"], ["share", "main"]]);
    assert!(!session.rows(ROWS).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_key_is_an_ingest_token() {
    let (server, session) = shop(&[("VERUS_PASSWORD", "secret")]).await;
    let token = |name: &str, store: &str| {
        let statement = format!("CREATE INGEST TOKEN {name} {store}");
        let session = &session;
        async move { session.rows(&statement).await[0][1].clone() }
    };
    let (all, one) = (token("web", "").await, token("berlin", "FOR STORE 'berlin'").await);
    let body = |id: u32, more: &str| {
        format!("{{\"messageId\":\"{id}\",\"userId\":\"u\",\"event\":\"A\",\"timestamp\":\"2024-05-01T10:00:00Z\"{more}}}")
    };
    assert_eq!(post(&server, "/v1/track", "", body(1, "")).await.code, 401);
    assert_eq!(post(&server, "/v1/track", &basic("wrong"), body(1, "")).await.code, 401);
    assert_eq!(post(&server, "/v1/track", "", body(1, ",\"writeKey\":\"wrong\"")).await.code, 401);
    assert_eq!(post(&server, "/v1/track", &basic(&all), body(1, "")).await.code, 200);
    // A browser's library has it in the body.
    assert_eq!(post(&server, "/v1/t", "Content-Type: text/plain\r\n", body(2, &format!(",\"writeKey\":\"{all}\""))).await.code, 200);
    assert_eq!(post(&server, "/v1/track", &basic(&one), body(3, "")).await.code, 200);
    let other = post(&server, "/v1/track", &basic(&one), body(4, ",\"properties\":{\"store_id\":\"ulm\"}")).await;
    assert_eq!((other.code, &other.body["refused"][0]["code"]), (400, &json!("42501")), "{other:?}");
    assert_eq!(session.value("SELECT string_agg(store_id, ' ' ORDER BY store_id) FROM events").await, "berlin main main");
}

/// The libraries themselves, where they are.
#[tokio::test(flavor = "multi_thread")]
async fn the_libraries_send() {
    let (Some(python), Some(node)) = (std::env::var_os("VERUS_SEGMENT_PYTHON"), std::env::var_os("VERUS_SEGMENT_NODE")) else {
        eprintln!("\nNOT TESTED: VERUS_SEGMENT_PYTHON and VERUS_SEGMENT_NODE do not say where Segment's libraries are\n");
        return;
    };
    let (server, session) = shop(&[("VERUS_PASSWORD", "secret")]).await;
    let key = session.rows("CREATE INGEST TOKEN web").await[0][1].clone();
    let host = format!("http://127.0.0.1:{}", server.http);
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/segment");
    let sent = Command::new(python).arg(scripts.join("shop.py")).args([&host, &key, "gzip"]).output().unwrap();
    assert!(sent.status.success(), "{sent:?}");
    // Modules are looked for beside the script.
    let script = Path::new(&node).join("shop.mjs");
    std::fs::copy(scripts.join("shop.mjs"), &script).unwrap();
    let sent = Command::new("node").arg(script).args([&host, &key]).output().unwrap();
    assert!(sent.status.success(), "{sent:?}");
    check(&session).await;
}
