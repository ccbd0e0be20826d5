//! A message of Segment's protocol as events of `POST /v1/events`, by the rules of `sql/segment.sql`.
//!
//! *Invariants*: (1) the same message gives the same events with the same ids, so that one that is sent again is a duplicate; (2) what cannot be
//! an event goes on as it came, and is refused with its reason like any other.

use std::collections::HashMap;

use serde_json::{Map, Value};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_128;

use crate::config::ClientAddresses;

/// The rules.
#[derive(Debug, Default)]
pub struct Mapping {
    kinds: HashMap<(String, String), Kind>,
    columns: Vec<Rule>,
}

#[derive(Clone, Debug)]
struct Kind {
    event_type: String,
    item_type: Option<String>,
}

/// A column's rule, for one type of event or all.
#[derive(Debug)]
struct Rule {
    column: String,
    event_type: String,
    paths: Vec<Path>,
}

#[derive(Debug)]
enum Path {
    Constant(String),
    /// Members; one that ends in `[]` is a list to be summed over.
    Members(Vec<String>),
}

/// What the rules need to know beside the message.
#[derive(Clone, Copy, Debug)]
pub struct Around<'a> {
    /// The message's type where the message does not say.
    pub kind: &'a str,
    /// The partition's column, when the write key gives it.
    pub given: Option<&'a str>,
    /// What is kept of addresses.
    pub addresses: ClientAddresses,
}

impl Mapping {
    /// A row of `segment_events`.
    pub fn add_kind(&mut self, kind: &str, event: &str, event_type: &str, item_type: Option<&str>) {
        let found = Kind { event_type: event_type.to_owned(), item_type: item_type.map(str::to_owned) };
        self.kinds.insert((kind.to_owned(), event.to_owned()), found);
    }

    /// A row of `segment_columns`.
    pub fn add_column<'a>(&mut self, column: &str, event_type: &str, paths: impl Iterator<Item = &'a str>) {
        let path = |text: &str| match text.strip_prefix('=') {
            Some(constant) => Path::Constant(constant.to_owned()),
            None => Path::Members(text.split('.').map(str::to_owned).collect()),
        };
        let paths = paths.map(path).collect();
        self.columns.push(Rule { column: column.to_owned(), event_type: event_type.to_owned(), paths });
    }

    /// Appends a message's events, a line each.
    pub fn events(&self, message: &Value, around: Around<'_>, out: &mut String) {
        let line = |event: &Value, out: &mut String| {
            out.push_str(&event.to_string());
            out.push('\n');
        };
        let Value::Object(message) = message else { return line(message, out) };
        let text = |key: &str| message.get(key).and_then(Value::as_str).unwrap_or_default();
        let kind = if text("type").is_empty() { around.kind } else { text("type") };
        let name = if text("event").is_empty() { text("name") } else { text("event") };
        let Some(found) = self.kind(kind, name) else { return line(&Value::Object(message.clone()), out) };
        let identity = match text("messageId") {
            "" => Value::Object(message.clone()).to_string(),
            id => id.to_owned(),
        };
        let mut whole = self.event(message, None, &found.event_type, around);
        whole.insert("event_id".to_owned(), id(&identity).into());
        line(&Value::Object(whole), out);
        let Some(item_type) = &found.item_type else { return };
        let products = message.get("properties").and_then(|properties| properties.get("products")).and_then(Value::as_array);
        for (index, product) in products.into_iter().flatten().enumerate() {
            let mut item = self.event(message, Some(product), item_type, around);
            item.insert("event_id".to_owned(), id(&format!("{identity}/{index}")).into());
            line(&Value::Object(item), out);
        }
    }

    fn kind(&self, kind: &str, name: &str) -> Option<Kind> {
        let found = |event: &str| self.kinds.get(&(kind.to_owned(), event.to_owned())).cloned();
        let by_name = || (kind == "track" && !name.trim().is_empty()).then(|| Kind { event_type: snake(name), item_type: None });
        found(name).or_else(|| found("")).or_else(by_name)
    }

    /// The columns of the message, or of one of its products, and the rest of it as properties.
    fn event(&self, message: &Map<String, Value>, product: Option<&Value>, event_type: &str, around: Around<'_>) -> Map<String, Value> {
        let mut event = Map::new();
        event.insert("event_type".to_owned(), event_type.into());
        // The member that columns have been taken from, and its members that were.
        let root = if product.is_some() { "product" } else { "properties" };
        let mut taken = Vec::new();
        for rule in &self.columns {
            let is_own = rule.event_type == event_type;
            let is_general = rule.event_type.is_empty()
                && !self.columns.iter().any(|other| other.column == rule.column && other.event_type == event_type);
            if !is_own && !is_general {
                continue;
            }
            for path in &rule.paths {
                let value = match path {
                    Path::Constant(_) if around.given == Some(rule.column.as_str()) => None,
                    Path::Constant(text) => Some(Value::from(text.as_str())),
                    Path::Members(members) => find(message, product, members),
                };
                if let Some(value) = value {
                    if let Path::Members(members) = path
                        && let [first, member] = members.as_slice()
                        && first == root
                    {
                        taken.push(member.as_str());
                    }
                    event.insert(rule.column.clone(), value);
                    break;
                }
            }
        }
        let properties = properties(message, product, &taken, around.addresses);
        event.insert("properties".to_owned(), Value::Object(properties));
        event
    }
}

/// What no column has taken: the properties or traits (an item's product), the name, who it was, the context.
fn properties(message: &Map<String, Value>, product: Option<&Value>, taken: &[&str], addresses: ClientAddresses) -> Map<String, Value> {
    let members = |value: Option<&Value>| value.and_then(Value::as_object).cloned().unwrap_or_default();
    let mut rest = match product {
        Some(product) => members(Some(product)),
        None => members(message.get("traits")).into_iter().chain(members(message.get("properties"))).collect(),
    };
    taken.iter().for_each(|member| {
        rest.remove(*member);
    });
    let keys: &[&str] = if product.is_some() { &[] } else { &["event", "name", "anonymousId", "groupId", "previousId"] };
    for key in keys {
        if let Some(value) = message.get(*key).filter(|value| !value.is_null()) {
            rest.entry(*key).or_insert_with(|| value.clone());
        }
    }
    let mut context = members(message.get("context"));
    match product {
        // As much as the defaults of an item's columns need.
        Some(_) => context.retain(|key, _| key == "ip" || key == "userAgent"),
        None => {
            context.remove("library");
        }
    }
    if let Some(ip) = context.remove("ip") {
        let kept = ip.as_str().and_then(|text| text.parse().ok()).and_then(|address| addresses.kept(address));
        context.extend(kept.map(|address| ("ip".to_owned(), Value::from(address.to_string()))));
    }
    if !context.is_empty() {
        rest.insert("context".to_owned(), Value::Object(context));
    }
    rest
}

/// The value at the end of a path: none for NULL, an empty text, and where it leads nowhere.
fn find(message: &Map<String, Value>, product: Option<&Value>, members: &[String]) -> Option<Value> {
    let (first, rest) = members.split_first()?;
    let from = match (first.as_str(), product) {
        ("product", Some(product)) => product,
        _ => message.get(first.trim_end_matches("[]"))?,
    };
    let value = walk(from, first.ends_with("[]"), rest)?;
    (!value.is_null() && value.as_str() != Some("")).then_some(value)
}

fn walk(value: &Value, is_list: bool, rest: &[String]) -> Option<Value> {
    if is_list {
        let found: Vec<Value> = value.as_array()?.iter().filter_map(|item| walk(item, false, rest)).collect();
        return sum(&found);
    }
    let Some((member, rest)) = rest.split_first() else { return Some(value.clone()) };
    walk(value.get(member.trim_end_matches("[]"))?, member.ends_with("[]"), rest)
}

/// The sum of numbers, also of those written as texts; none of none.
fn sum(values: &[Value]) -> Option<Value> {
    let number = |value: &Value| value.as_f64().or_else(|| value.as_str()?.trim().parse().ok());
    let integers: Option<Vec<i64>> = values.iter().map(Value::as_i64).collect();
    if let Some(total) =
        integers.filter(|integers| !integers.is_empty()).and_then(|integers| integers.into_iter().try_fold(0i64, i64::checked_add))
    {
        return Some(total.into());
    }
    let numbers: Vec<f64> = values.iter().filter_map(number).collect();
    (!numbers.is_empty()).then(|| numbers.iter().sum::<f64>().into())
}

/// `Signed Up` as `signed_up`.
fn snake(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for character in name.trim().chars() {
        match character.is_alphanumeric() {
            true => text.extend(character.to_lowercase()),
            false if text.ends_with('_') || text.is_empty() => {}
            false => text.push('_'),
        }
    }
    text.trim_end_matches('_').to_owned()
}

/// A message's id as a UUID: itself where it is one, else made of its hash (version 8).
fn id(text: &str) -> String {
    if let Ok(id) = Uuid::parse_str(text) {
        return id.to_string();
    }
    let mut bytes = xxh3_128(text.as_bytes()).to_be_bytes();
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Uuid::from_bytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn mapping() -> Mapping {
        let mut mapping = Mapping::default();
        mapping.add_kind("page", "", "page_view", None);
        mapping.add_kind("track", "Order Completed", "purchase", Some("purchase_item"));
        for (column, event_type, paths) in [
            ("event_time", "", "timestamp sentAt"),
            ("store_id", "", "properties.store_id =main"),
            ("page", "", "properties.path context.page.path"),
            ("product_id", "", "properties.product_id"),
            ("product_id", "purchase_item", "product.product_id product.sku"),
            ("order_id", "", "properties.order_id"),
            ("quantity", "purchase", "properties.products[].quantity"),
            ("quantity", "purchase_item", "product.quantity =1"),
            ("revenue", "purchase", "properties.revenue properties.total"),
        ] {
            mapping.add_column(column, event_type, paths.split(' '));
        }
        mapping
    }

    fn events(message: Value, given: Option<&str>) -> Vec<Value> {
        let mut out = String::new();
        let around = Around { kind: "track", given, addresses: ClientAddresses::Truncate };
        mapping().events(&message, around, &mut out);
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn an_order_is_one_purchase_and_its_items() {
        let message = json!({
            "type": "track", "event": "Order Completed", "messageId": "m-1", "userId": "u", "timestamp": "2024-05-01T10:00:00Z",
            "context": {"ip": "198.51.100.77", "userAgent": "x", "library": {"name": "y"}, "page": {"path": "/thanks"}},
            "properties": {"order_id": "o-1", "revenue": 25.5, "total": 30, "coupon": "MAY", "products": [
                {"product_id": "p1", "quantity": 2, "price": 10}, {"sku": "p2", "quantity": 1, "name": "Socks"}]},
        });
        let found = events(message.clone(), None);
        assert_eq!(found.len(), 3);
        let order = &found[0];
        assert_eq!((&order["event_type"], &order["revenue"], &order["quantity"]), (&json!("purchase"), &json!(25.5), &json!(3)));
        assert_eq!((&order["order_id"], &order["page"], &order["store_id"]), (&json!("o-1"), &json!("/thanks"), &json!("main")));
        let rest = order["properties"].as_object().unwrap();
        assert_eq!((&rest["coupon"], &rest["total"], rest.get("revenue"), rest.get("order_id")), (&json!("MAY"), &json!(30), None, None));
        assert_eq!(rest["context"], json!({"ip": "198.51.100.0", "userAgent": "x", "page": {"path": "/thanks"}}));
        let (first, second) = (&found[1], &found[2]);
        assert_eq!((&first["event_type"], &first["product_id"], &first["quantity"]), (&json!("purchase_item"), &json!("p1"), &json!(2)));
        assert_eq!((first.get("revenue"), &first["order_id"], &first["properties"]["price"]), (None, &json!("o-1"), &json!(10)));
        assert_eq!((&second["product_id"], &second["properties"]["name"]), (&json!("p2"), &json!("Socks")));
        // Ids are stable, and different.
        assert_eq!(events(message, None), found);
        assert!(found[0]["event_id"] != found[1]["event_id"] && found[1]["event_id"] != found[2]["event_id"]);
    }

    #[test]
    fn names_ids_and_what_is_no_event() {
        let one = |message: Value| events(message, None).remove(0);
        assert_eq!(one(json!({"event": " Signed Up! (App)", "userId": "u"}))["event_type"], "signed_up_app");
        let id = "8cc7ac1c-2a6e-4d4b-9f8d-6a7d6b0c1c11";
        assert_eq!(one(json!({"type": "page", "messageId": id}))["event_id"], id);
        assert_eq!(
            one(json!({"type": "page", "properties": {"path": "", "title": "x"}, "context": {"page": {"path": "/a"}}}))["page"],
            "/a"
        );
        assert_eq!(one(json!({"type": "unknown", "x": 1})), json!({"type": "unknown", "x": 1}));
        assert_eq!(one(json!(5)), 5);
        // A write key for a store gives the store.
        assert_eq!(events(json!({"event": "a"}), Some("store_id"))[0].get("store_id"), None);
        assert_eq!(events(json!({"event": "a", "properties": {"store_id": "b"}}), Some("store_id"))[0]["store_id"], "b");
    }
}
